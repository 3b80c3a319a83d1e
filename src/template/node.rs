//! Template syntax tree, with Go's textual form of nodes for error messages.

use super::data::Data;
use std::collections::BTreeMap;
use std::fmt;

/// A parsed template and the templates it defines.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    pub text: String,
    pub root: Vec<Node>,
    pub defined: BTreeMap<String, Vec<Node>>,
}

#[derive(Clone, Debug)]
pub(super) enum Node {
    Text(String),
    Action(Pipeline),
    If(Branch),
    With(Branch),
    Range(Branch),
    Template { pos: usize, name: String, shown: String, pipeline: Option<Pipeline> },
    Break,
    Continue,
}

/// The parts of an `if`, `with` or `range` action.
#[derive(Clone, Debug)]
pub(super) struct Branch {
    pub pipeline: Pipeline,
    pub body: Vec<Node>,
    pub otherwise: Vec<Node>,
}

#[derive(Clone, Default, Debug)]
pub(super) struct Pipeline {
    pub pos: usize,
    /// Variables to set, without `$`.
    pub variables: Vec<String>,
    /// Whether the variables are assigned (`=`), not declared (`:=`).
    pub assign: bool,
    pub commands: Vec<Command>,
}

#[derive(Clone, Debug)]
pub(super) struct Command {
    pub pos: usize,
    pub args: Vec<Expr>,
}

#[derive(Clone, Debug)]
pub(super) struct Expr {
    pub pos: usize,
    pub kind: ExprKind,
}

#[derive(Clone, Debug)]
pub(super) enum ExprKind {
    Dot,
    Nil,
    Bool(bool),
    /// A number or character constant, and its source text.
    Number(Data, String),
    /// A string, and its quoted source text.
    Text(String, String),
    Function(String),
    Field(Vec<String>),
    /// A variable's name with the `$`, and the fields that follow.
    Variable(String, Vec<String>),
    Parens(Box<Pipeline>),
    /// Fields of an expression in parentheses or of a function's result.
    Chain(Box<Expr>, Vec<String>),
}

impl fmt::Display for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.variables.is_empty() {
            write!(f, "{} {} ", self.variables.join(", "), if self.assign { "=" } else { ":=" })?;
        }
        for (at, command) in self.commands.iter().enumerate() {
            write!(f, "{}{command}", if at > 0 { " | " } else { "" })?;
        }
        Ok(())
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, arg) in self.args.iter().enumerate() {
            write!(f, "{}{arg}", if at > 0 { " " } else { "" })?;
        }
        Ok(())
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = |f: &mut fmt::Formatter<'_>, names: &[String]| names.iter().try_for_each(|n| write!(f, ".{n}"));
        match &self.kind {
            ExprKind::Dot => f.write_str("."),
            ExprKind::Nil => f.write_str("nil"),
            ExprKind::Bool(b) => write!(f, "{b}"),
            ExprKind::Number(_, text) | ExprKind::Text(_, text) | ExprKind::Function(text) => f.write_str(text),
            ExprKind::Field(names) => fields(f, names),
            ExprKind::Variable(name, names) => f.write_str(name).and_then(|()| fields(f, names)),
            ExprKind::Parens(pipeline) => write!(f, "({pipeline})"),
            ExprKind::Chain(expr, names) => write!(f, "{expr}").and_then(|()| fields(f, names)),
        }
    }
}
