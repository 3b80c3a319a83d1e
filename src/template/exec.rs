//! Template executor.
//!
//! `node` mirrors Go's executor: an error names the node visited last, even where that is odd.

use super::data::Data;
use super::functions::{self, Param};
use super::node::{Branch, Command, Expr, ExprKind, Node, Pipeline, Tree};
use super::printf::quote;
use super::{Functions, MissingKey, OUTPUT_MAX};

/// Maximum nesting of blocks, parentheses and template calls during execution.
const DEPTH_MAX: usize = 200;
/// Maximum number of execution steps.
const STEPS_MAX: usize = 4 << 20;

type Result<T> = std::result::Result<T, String>;

struct State<'a> {
    tree: &'a Tree,
    missing: MissingKey,
    functions: Functions,
    out: String,
    variables: Vec<(String, Data)>,
    /// The current template, and the position and text of the node visited last, for error messages.
    name: String,
    pos: usize,
    shown: String,
    depth: usize,
    steps: usize,
}

/// Control flow of a loop body.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    On,
    Break,
    Continue,
}

/// Executes a template. The error is Go's message.
pub(super) fn execute(tree: &Tree, data: &Data, missing: MissingKey, functions: Functions) -> Result<String> {
    let mut state = State {
        tree,
        missing,
        functions,
        out: String::new(),
        variables: vec![("$".into(), data.clone())],
        name: String::new(),
        pos: 0,
        shown: String::new(),
        depth: 0,
        steps: 0,
    };
    state.list(&tree.root, data)?;
    Ok(state.out)
}

impl<'a> State<'a> {
    fn at(&mut self, pos: usize, shown: &dyn std::fmt::Display) {
        self.pos = pos;
        self.shown = shown.to_string();
    }

    fn error(&self, what: impl std::fmt::Display) -> String {
        let before = &self.tree.text[..self.pos.min(self.tree.text.len())];
        let line = 1 + before.matches('\n').count();
        let column = self.pos - before.rfind('\n').map_or(0, |at| at + 1);
        format!("template: :{line}:{column}: executing {} at <{}>: {what}", quote(&self.name), self.shown)
    }

    fn nested<T>(&mut self, run: impl FnOnce(&mut State<'a>) -> Result<T>) -> Result<T> {
        self.depth += 1;
        self.steps += 1;
        if self.depth > DEPTH_MAX {
            return Err(self.error(format!("exceeded maximum template depth ({DEPTH_MAX})")));
        }
        if self.steps > STEPS_MAX {
            return Err(self.error(format!("exceeded {STEPS_MAX} steps")));
        }
        let done = run(self);
        self.depth -= 1;
        done
    }

    fn write(&mut self, text: &str) -> Result<()> {
        if self.out.len() + text.len() > OUTPUT_MAX {
            return Err(self.error(format!("output is longer than {OUTPUT_MAX} bytes")));
        }
        self.out.push_str(text);
        Ok(())
    }

    fn list(&mut self, nodes: &'a [Node], dot: &Data) -> Result<Flow> {
        self.nested(|s| {
            for node in nodes {
                match s.node(node, dot)? {
                    Flow::On => {}
                    other => return Ok(other),
                }
            }
            Ok(Flow::On)
        })
    }

    fn node(&mut self, node: &'a Node, dot: &Data) -> Result<Flow> {
        match node {
            Node::Text(text) => self.write(text)?,
            Node::Action(pipeline) => {
                let value = self.pipeline(pipeline, dot)?;
                if pipeline.variables.is_empty() {
                    // Go prints an untyped nil as `<no value>`.
                    let text = if value == Data::Nil { Data::Missing.print() } else { value.print() };
                    self.write(&text)?;
                }
            }
            Node::If(branch) => return self.branch(branch, dot, false),
            Node::With(branch) => return self.branch(branch, dot, true),
            Node::Range(branch) => return self.range(branch, dot),
            Node::Template { pos, name, shown, pipeline } => {
                self.at(*pos, shown);
                self.template(name, pipeline.as_ref(), dot)?;
            }
            Node::Break => return Ok(Flow::Break),
            Node::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::On)
    }

    fn branch(&mut self, branch: &'a Branch, dot: &Data, with: bool) -> Result<Flow> {
        let scope = self.variables.len();
        let value = self.pipeline(&branch.pipeline, dot)?;
        let flow = if value.truth() {
            self.list(&branch.body, if with { &value } else { dot })?
        } else {
            self.list(&branch.otherwise, dot)?
        };
        self.variables.truncate(scope);
        Ok(flow)
    }

    fn range(&mut self, branch: &'a Branch, dot: &Data) -> Result<Flow> {
        let scope = self.variables.len();
        let value = self.commands(&branch.pipeline, dot)?;
        let names = &branch.pipeline.variables;
        let turn = |s: &mut State<'a>, key: Data, item: &Data| {
            let values = if names.len() == 2 { vec![key, item.clone()] } else { vec![item.clone()] };
            for (name, value) in names.iter().zip(values) {
                s.set(name, value, branch.pipeline.assign);
            }
            let flow = s.list(&branch.body, item)?;
            s.variables.truncate(scope);
            Ok::<_, String>(flow == Flow::Break)
        };
        let int = |at: usize| Data::Int(i64::try_from(at).unwrap_or(i64::MAX));
        let mut any = false;
        match &value {
            Data::List(list) => {
                for (at, item) in list.iter().enumerate() {
                    any = true;
                    if turn(self, int(at), item)? {
                        break;
                    }
                }
            }
            Data::Map(map) => {
                for (key, item) in map.iter() {
                    any = true;
                    if turn(self, Data::str(key), item)? {
                        break;
                    }
                }
            }
            Data::Int(_) if names.len() > 1 => {
                return Err(self.error(format!("can't use {} to iterate over more than one variable", value.print())));
            }
            Data::Int(count) => {
                for at in 0..*count {
                    any = true;
                    if turn(self, Data::Nil, &Data::Int(at))? {
                        break;
                    }
                }
            }
            Data::Missing | Data::Nil | Data::NilMap | Data::NilList => {}
            other => return Err(self.error(format!("range can't iterate over {}", other.print()))),
        }
        let flow = if any { Flow::On } else { self.list(&branch.otherwise, dot)? };
        self.variables.truncate(scope);
        Ok(flow)
    }

    fn template(&mut self, name: &str, pipeline: Option<&'a Pipeline>, dot: &Data) -> Result<()> {
        let tree = self.tree;
        let Some(body) = tree.defined.get(name) else {
            return Err(self.error(format!("template {} not defined", quote(name))));
        };
        let dot = match pipeline {
            Some(pipeline) => self.pipeline(pipeline, dot)?,
            None => Data::Missing,
        };
        let outer = std::mem::replace(&mut self.variables, vec![("$".into(), dot.clone())]);
        let outer_name = std::mem::replace(&mut self.name, name.to_owned());
        self.list(body, &dot)?;
        self.variables = outer;
        self.name = outer_name;
        Ok(())
    }

    fn set(&mut self, name: &str, value: Data, assign: bool) {
        let old = self.variables.iter_mut().rev().find(|(n, _)| assign && n == name);
        match old {
            Some((_, old)) => *old = value,
            None => self.variables.push((name.to_owned(), value)),
        }
    }

    fn pipeline(&mut self, pipeline: &'a Pipeline, dot: &Data) -> Result<Data> {
        let value = self.commands(pipeline, dot)?;
        for name in &pipeline.variables {
            self.set(name, value.clone(), pipeline.assign);
        }
        Ok(value)
    }

    fn commands(&mut self, pipeline: &'a Pipeline, dot: &Data) -> Result<Data> {
        self.at(pipeline.pos, pipeline);
        self.nested(|s| {
            let mut value = None;
            for command in &pipeline.commands {
                value = Some(s.command(command, dot, value)?);
            }
            Ok(value.unwrap_or(Data::Missing))
        })
    }

    fn command(&mut self, command: &'a Command, dot: &Data, last: Option<Data>) -> Result<Data> {
        let Some(first) = command.args.first() else { return Ok(Data::Missing) };
        let has_args = command.args.len() > 1 || last.is_some();
        if let ExprKind::Function(name) = &first.kind {
            return self.function(name, first, command, dot, last);
        }
        if let ExprKind::Field(_) | ExprKind::Variable(..) | ExprKind::Chain(..) = &first.kind {
            return self.fields_of(first, dot, has_args);
        }
        if !matches!(first.kind, ExprKind::Parens(_)) {
            self.at(first.pos, first);
        }
        if has_args {
            return Err(self.error(format!("can't give argument to non-function {first}")));
        }
        match &first.kind {
            ExprKind::Nil => Err(self.error("nil is not a command")),
            _ => self.value(first, dot),
        }
    }

    /// Evaluates a field, a variable or a chain, with its fields.
    fn fields_of(&mut self, expr: &'a Expr, dot: &Data, has_args: bool) -> Result<Data> {
        self.at(expr.pos, expr);
        match &expr.kind {
            ExprKind::Field(names) => self.fields(dot.clone(), names, has_args),
            ExprKind::Variable(name, names) => {
                let found = self.variables.iter().rev().find(|(n, _)| n == name).map(|(_, value)| value.clone());
                if names.is_empty() && has_args {
                    return Err(self.error(format!("can't give argument to non-function {expr}")));
                }
                self.fields(found.unwrap_or(Data::Missing), names, has_args)
            }
            ExprKind::Chain(inner, names) => {
                let value = self.value(inner, dot)?;
                self.fields(value, names, has_args)
            }
            _ => Ok(Data::Missing),
        }
    }

    fn fields(&mut self, mut value: Data, names: &[String], has_args: bool) -> Result<Data> {
        // A map's values have the type interface{} in Go.
        let mut untyped = false;
        for (at, name) in names.iter().enumerate() {
            let has_args = has_args && at + 1 == names.len();
            let type_name = if untyped { "interface {}" } else { value.type_name() };
            untyped = matches!(value, Data::Map(_));
            value = self.field(&value, name, has_args, type_name)?;
        }
        Ok(value)
    }

    fn field(&self, value: &Data, name: &str, has_args: bool, type_name: &str) -> Result<Data> {
        let found = match value {
            Data::Struct(record) => {
                record.fields.iter().chain(&record.empty).find(|(n, _)| n == name).map(|(_, value)| value)
            }
            Data::Map(map) => {
                if has_args {
                    return Err(self.error(format!("{name} is not a method but has arguments")));
                }
                map.get(name)
            }
            _ => None,
        };
        match (value, found) {
            (_, Some(_)) if has_args => {
                Err(self.error(format!("{name} has arguments but cannot be invoked as function")))
            }
            (_, Some(found)) => Ok(found.clone()),
            (Data::Map(_), None) if self.missing == MissingKey::Error => {
                Err(self.error(format!("map has no entry for key {}", quote(name))))
            }
            (Data::Missing, None) if self.missing == MissingKey::Error => {
                Err(self.error(format!("nil data; no entry for key {}", quote(name))))
            }
            (Data::Map(_) | Data::NilMap | Data::Missing, None) => Ok(Data::Missing),
            (Data::Nil, None) => Err(self.error(format!("nil pointer evaluating interface {{}}.{name}"))),
            _ => Err(self.error(format!("can't evaluate field {name} in type {type_name}"))),
        }
    }

    /// Evaluates an operand.
    fn value(&mut self, expr: &'a Expr, dot: &Data) -> Result<Data> {
        self.at(expr.pos, expr);
        match &expr.kind {
            ExprKind::Dot => Ok(dot.clone()),
            ExprKind::Nil => Ok(Data::Nil),
            ExprKind::Bool(b) => Ok(Data::Bool(*b)),
            ExprKind::Number(value, _) => Ok(value.clone()),
            ExprKind::Text(text, _) => Ok(Data::str(text)),
            ExprKind::Parens(pipeline) => self.pipeline(pipeline, dot),
            ExprKind::Function(name) => {
                let lone = Command { pos: expr.pos, args: Vec::new() };
                self.call(name, expr, &lone, Vec::new())
            }
            ExprKind::Field(_) | ExprKind::Variable(..) | ExprKind::Chain(..) => self.fields_of(expr, dot, false),
        }
    }

    fn function(
        &mut self,
        name: &str,
        word: &'a Expr,
        command: &'a Command,
        dot: &Data,
        last: Option<Data>,
    ) -> Result<Data> {
        self.at(word.pos, word);
        let exprs = &command.args[1..];
        let count = exprs.len() + usize::from(last.is_some());
        self.check_count(name, count)?;
        if name == "and" || name == "or" {
            let mut value = Data::Missing;
            for expr in exprs {
                value = self.value(expr, dot)?;
                if value.truth() == (name == "or") {
                    return Ok(value);
                }
            }
            return Ok(last.unwrap_or(value));
        }
        let mut args = Vec::with_capacity(count);
        for (at, expr) in exprs.iter().enumerate() {
            let param = functions::param(name, at);
            let value = self.value(expr, dot)?;
            args.push(self.checked(value, param, Some(expr))?);
        }
        if let Some(last) = last {
            let param = functions::param(name, exprs.len());
            args.push(self.checked(last, param, None)?);
        }
        self.call(name, word, command, args)
    }

    fn check_count(&self, name: &str, count: usize) -> Result<()> {
        let (want, more) = functions::arity(name);
        if count == want || (more && count > want) {
            return Ok(());
        }
        let least = if more { "at least " } else { "" };
        Err(self.error(format!("wrong number of args for {name}: want {least}{want} got {count}")))
    }

    /// Checks and converts an argument to a parameter's type. Constants have their own error messages.
    fn checked(&self, value: Data, param: Param, expr: Option<&Expr>) -> Result<Data> {
        let constant = expr.filter(|e| matches!(e.kind, ExprKind::Bool(_) | ExprKind::Number(..) | ExprKind::Text(..)));
        let fits = match param {
            Param::Any => true,
            Param::Text => matches!(value, Data::Str(_)),
            Param::Int => matches!(value, Data::Int(_)),
            Param::Texts => value.as_list().is_some_and(|l| l.iter().all(|d| matches!(d, Data::Str(_)))),
        };
        if fits {
            return Ok(value);
        }
        let wanted = param.type_name();
        let wrong = match (constant, &value) {
            (Some(expr), _) => format!("expected {}; found {expr}", param.constant_name()),
            (None, Data::Nil) if expr.is_some_and(|e| matches!(e.kind, ExprKind::Nil)) => {
                format!("cannot assign nil to {wanted}")
            }
            (None, Data::Missing | Data::Nil) => format!("invalid value; expected {wanted}"),
            (None, value) => format!("wrong type for value; expected {wanted}; got {}", value.type_name()),
        };
        Err(self.error(wrong))
    }

    fn call(&mut self, name: &str, word: &Expr, command: &Command, args: Vec<Data>) -> Result<Data> {
        self.check_count(name, args.len())?;
        if name == "call"
            && let Some(value) = args.first()
        {
            self.at(command.pos, command);
            let shown = command.args.get(1).map(ToString::to_string).unwrap_or_default();
            let why = match value {
                Data::Nil | Data::Missing => "call of nil".to_owned(),
                value => format!("non-function {shown} of type {}", value.type_name()),
            };
            return Err(self.error(format!("error calling call: {why}")));
        }
        functions::call(name, &args, self.functions).map_err(|why| {
            if command.args.is_empty() {
                self.at(word.pos, word)
            } else {
                self.at(command.pos, command)
            }
            self.error(format!("error calling {name}: {why}"))
        })
    }
}
