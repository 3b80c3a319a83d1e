//! One stage of a build: its instructions in order.

use super::plan::{Base, Origin};
use super::state::State;
use super::{Build, Ended, Error, Result};
use crate::dockerfile::{self, Change, Instruction, What, expand};
use crate::fs::Fs;
use crate::image::manifest::DOCUMENT_CAP;
use crate::image::{self};
use crate::store::{Image, Intent, LayerRecord};
use serde_json::Value;
use std::sync::Arc;

/// A finished stage.
pub type Stage = State;

/// A stage being built.
pub(super) struct StageRun<'a> {
    pub(super) build: &'a Build<'a>,
    pub(super) number: usize,
    pub(super) state: State,
    /// The merged tree of the layers, and their number.
    tree: Option<(usize, Arc<Fs>)>,
    /// How many steps have begun, and how many there are.
    step: usize,
    steps: usize,
    /// The name in the steps' titles; empty if the file has one stage.
    name: String,
}

/// Makes an image of layers that are in the store, for what takes an image.
pub(super) fn image_of(layers: &[LayerRecord]) -> Image {
    let chain = crate::store::chain_ids(layers.iter().map(|layer| &layer.diff_id)).pop();
    Image::new(chain.unwrap_or_else(|| crate::digest::Digest::of(b"")), layers.to_vec())
}

/// Whether an instruction is a step of its own, with a line in the output.
fn is_step(what: &What) -> bool {
    matches!(what, What::Run(_) | What::Copy(_) | What::Change(Change::WorkDir(_)))
}

impl<'a> StageRun<'a> {
    /// Begins a stage: waits for its base.
    pub(super) fn new(build: &'a Build<'a>, number: usize) -> Result<StageRun<'a>> {
        let options = build.options;
        let stage = &options.file.stages[number];
        let state = match &options.plan.bases[number] {
            Base::Scratch => State::scratch(&options.platform),
            Base::Stage(base) => State::of_stage(&*build.wait_for(*base)?),
            Base::Image(name) => {
                let image = options
                    .images
                    .get(name)
                    .ok_or_else(|| Error::new(Some(stage.line), format!("the image {} is not there", name.name)))?;
                let failed = |why: String| Error::new(Some(stage.line), why);
                let layers = image.layers.iter().map(|layer| layer.diff_id.clone()).collect();
                let needed = Intent { layers, trees: [image.chain_id()].into(), ..Intent::default() };
                build.need(needed).map_err(failed)?;
                let bytes = build.session.store().blob(&image.id, DOCUMENT_CAP).map_err(|e| failed(e.to_string()))?;
                let document = match serde_json::from_slice(&bytes) {
                    Ok(Value::Object(document)) => document,
                    _ => return Err(failed(format!("the config of {} is not a JSON object", name.name))),
                };
                State::of_image(image.layers.clone(), document)
            }
        };
        let steps = 1 + stage.instructions.iter().filter(|instruction| is_step(&instruction.what)).count();
        let name = match (&stage.from.name, options.file.stages.len()) {
            (_, 1) => String::new(),
            (Some(name), _) => format!("{name} "),
            (None, _) => format!("stage-{number} "),
        };
        Ok(StageRun { build, number, state, tree: None, step: 0, steps, name })
    }

    /// Builds the stage.
    pub(super) fn run(mut self) -> Result<Stage> {
        let stage = &self.build.options.file.stages[self.number];
        if self.build.options.plan.bases[self.number] != Base::Scratch {
            let title = self.title(&format!("FROM {}", stage.from.image));
            let step = self.build.watch.begin(&title);
            self.build.watch.end(step, Ended::Cached);
        } else {
            self.step += 1;
        }
        for trigger in self.take_triggers() {
            let parsed = dockerfile::parse_trigger(&trigger, stage.line);
            let instruction = parsed.map_err(|e| Error::new(Some(e.line), e.why))?;
            self.steps += usize::from(is_step(&instruction.what));
            self.apply(&instruction)?;
        }
        for instruction in &stage.instructions {
            self.apply(instruction)?;
        }
        Ok(self.state)
    }

    /// Removes the `ONBUILD` triggers of the base from the config, and returns them.
    fn take_triggers(&mut self) -> Vec<String> {
        let list = self.state.config.fields.shift_remove("OnBuild");
        let list = list.as_ref().and_then(Value::as_array).into_iter().flatten();
        list.filter_map(|trigger| trigger.as_str().map(str::to_owned)).collect()
    }

    /// Returns the title of the next step.
    pub(super) fn title(&mut self, text: &str) -> String {
        self.step += 1;
        format!("[{}{}/{}] {text}", self.name, self.step, self.steps)
    }

    /// Replaces the variables of a word.
    pub(super) fn expand(&self, word: &str, line: usize) -> Result<String> {
        expand(word, self.build.options.file.escape, &|name| self.state.variable(name)).map_err(Error::at(line))
    }

    fn apply(&mut self, instruction: &Instruction) -> Result<()> {
        self.build.check()?;
        match &instruction.what {
            // Only the parser of a whole file makes it.
            What::From(_) => Ok(()),
            What::Arg(args) => self.arg(args, instruction),
            What::Run(run) => self.run_command(run, instruction),
            What::Copy(copy) => self.copy(copy, instruction),
            What::Change(change) => self.change(change, instruction),
        }
    }

    fn arg(&mut self, args: &[(String, Option<String>)], instruction: &Instruction) -> Result<()> {
        let options = self.build.options;
        let mut shown = String::from("ARG");
        for (name, default) in args {
            let given = options.args.get(name);
            if given.is_some() {
                self.build.shared.lock().used_args.insert(name.clone());
            }
            let own = default.as_ref().map(|default| self.expand(default, instruction.first)).transpose()?;
            let global = || {
                let is_global = options.file.args.iter().any(|(global, _)| global == name);
                let known = if is_global { &options.plan.global } else { &options.plan.predefined };
                known.get(name).cloned()
            };
            let value = given.cloned().or(own).or_else(global);
            shown += &match &value {
                Some(value) => format!(" {name}={value}"),
                None => format!(" {name}"),
            };
            if let Some(value) = value {
                self.state.args.insert(name.clone(), value);
            }
        }
        self.state.add_step(&shown, None);
        Ok(())
    }

    fn change(&mut self, change: &Change, instruction: &Instruction) -> Result<()> {
        let before = self.state.clone();
        let lookup = |name: &str| before.variable(name);
        let escape = self.build.options.file.escape;
        self.state.config.apply(change, escape, &lookup).map_err(Error::at(instruction.first))?;
        match change {
            Change::WorkDir(_) => return self.make_work_dir(instruction),
            Change::Maintainer(author) => self.state.set_author(author),
            _ => {}
        }
        self.state.add_step(&instruction.text, None);
        Ok(())
    }

    /// Returns the merged tree of the layers so far.
    pub(super) fn tree(&mut self) -> std::result::Result<Arc<Fs>, String> {
        if let Some((count, tree)) = &self.tree
            && *count == self.state.layers.len()
        {
            return Ok(Arc::clone(tree));
        }
        let tree = Arc::new(self.build.open(&self.state.layers)?);
        self.tree = Some((self.state.layers.len(), Arc::clone(&tree)));
        Ok(tree)
    }

    /// Returns the layers of where a copied or mounted file comes from.
    pub(super) fn layers_of(&self, from: &str, line: usize) -> Result<Vec<LayerRecord>> {
        let plan = self.build.options.plan;
        match plan.origin(from, self.number, line)? {
            Origin::Stage(number) if number == self.number => {
                Err(Error::new(Some(line), format!("stage {from} cannot copy from itself")))
            }
            Origin::Stage(number) => Ok(self.build.wait_for(number)?.layers.clone()),
            Origin::Image(name) => {
                let image = self.build.options.images.get(&name);
                let image = image.ok_or_else(|| Error::new(Some(line), format!("the image {from} is not there")))?;
                let layers = image.layers.iter().map(|layer| layer.diff_id.clone()).collect();
                self.build.need(Intent { layers, ..Intent::default() }).map_err(Error::at(line))?;
                Ok(image.layers.clone())
            }
        }
    }
}

impl Build<'_> {
    /// Opens the merged tree of layers that are in the store.
    pub(super) fn open(&self, layers: &[LayerRecord]) -> std::result::Result<Fs, String> {
        let image = image_of(layers);
        self.trees.lock().insert(image.chain_id());
        self.need(Intent { trees: [image.chain_id()].into(), ..Intent::default() })?;
        let opened = image::open_tree(self.session.store(), &image).map_err(|e| e.to_string())?;
        opened.into_fs(None, None).map_err(|e| e.to_string())
    }
}
