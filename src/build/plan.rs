//! The plan of a build: which stages are needed, what each is based on, and which images they use.

use super::{Error, Result};
use crate::dockerfile::{self, Change, CopyFiles, Dockerfile, Instruction, What, expand};
use crate::image::Platform;
use std::collections::BTreeMap;

/// The base of a stage.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Base {
    /// Nothing.
    Scratch,
    /// Another stage.
    Stage(usize),
    /// An image.
    Image(ImageName),
}

/// An image by name and platform.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ImageName {
    /// Name or ID.
    pub name: String,
    /// Platform, as `OS/ARCH[/VARIANT]`.
    pub platform: String,
    /// Whether the platform was asked for.
    pub strict: bool,
}

/// Where a copied or mounted file comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A stage.
    Stage(usize),
    /// An image.
    Image(ImageName),
}

/// What a build is asked for.
pub struct Request<'a> {
    /// The last stage to build; `None`: the last one of the file.
    pub target: Option<&'a str>,
    /// `--build-arg`.
    pub args: &'a BTreeMap<String, String>,
    /// The platform of the new image.
    pub platform: &'a Platform,
    /// Whether `platform` was asked for.
    pub strict: bool,
}

/// `ONBUILD` instructions by image.
pub type Triggers = BTreeMap<ImageName, Vec<String>>;

/// The plan.
#[derive(Debug)]
pub struct Plan {
    /// The base of each stage.
    pub bases: Vec<Base>,
    /// The stages to build. Each comes after those that it needs.
    pub order: Vec<usize>,
    /// The stage of the new image.
    pub target: usize,
    /// All images that the stages use, with the line that uses each first.
    pub images: BTreeMap<ImageName, usize>,
    /// Values of the arguments before the first `FROM`, and of the predefined ones.
    pub global: BTreeMap<String, String>,
    /// The predefined ones among them, which need no default to be in scope.
    pub predefined: BTreeMap<String, String>,
    /// The platform of the new image, for images that stages copy from.
    platform: (String, bool),
    names: Vec<Option<String>>,
}

impl Plan {
    /// Makes the plan of a Dockerfile. `triggers` has the `ONBUILD` instructions of images, as far as they are known.
    pub fn new(file: &Dockerfile, request: &Request<'_>, triggers: &Triggers) -> Result<Plan> {
        let predefined = predefined(request.platform);
        let mut global = predefined.clone();
        for (name, default) in &file.args {
            let value = match (request.args.get(name), default) {
                (Some(given), _) => Some(given.clone()),
                (None, Some(default)) => {
                    let value = expand(default, file.escape, &|name| global.get(name).cloned());
                    Some(value.map_err(|why| Error::new(None, format!("ARG {name}: {why}")))?)
                }
                (None, None) => None,
            };
            global.extend(value.map(|value| (name.clone(), value)));
        }
        let names = file.stages.iter().map(|stage| stage.from.name.clone()).collect();
        let platform = (request.platform.to_string(), request.strict);
        let mut plan = Plan {
            bases: Vec::new(),
            order: Vec::new(),
            target: 0,
            images: BTreeMap::new(),
            global,
            predefined,
            platform,
            names,
        };
        for number in 0..file.stages.len() {
            let base = plan.base(file, number)?;
            plan.bases.push(base);
        }
        plan.target = match request.target {
            None => file.stages.len() - 1,
            Some(name) => plan
                .stage(name, file.stages.len())
                .ok_or_else(|| Error::new(None, format!("target stage \"{name}\" could not be found")))?,
        };
        plan.visit(file, (plan.target, file.stages[plan.target].line), triggers, &mut Vec::new())?;
        Ok(plan)
    }

    /// Returns a stage by name, or by number if that is below `limit`.
    fn stage(&self, name: &str, limit: usize) -> Option<usize> {
        let lower = name.to_ascii_lowercase();
        let named = self.names[..limit].iter().rposition(|other| other.as_deref() == Some(&lower));
        named.or_else(|| name.parse().ok().filter(|number| *number < limit))
    }

    /// Resolves the `FROM` of a stage.
    fn base(&self, file: &Dockerfile, number: usize) -> Result<Base> {
        let stage = &file.stages[number];
        let line = Some(stage.line);
        let value = |text: &str| {
            expand(text, file.escape, &|name| self.global.get(name).cloned()).map_err(|why| Error::new(line, why))
        };
        let name = value(&stage.from.image)?;
        if name.is_empty() {
            let text = &stage.from.image;
            return Err(Error::new(line, format!("base name ({text}) should not be blank")));
        }
        let own = stage.from.platform.as_deref().map(value).transpose()?.filter(|text| !text.is_empty());
        let (platform, strict) = match own {
            Some(text) => {
                let platform = parse_platform(&text).map_err(|why| Error::new(line, format!("FROM: {why}")))?;
                (platform.to_string(), true)
            }
            None => self.platform.clone(),
        };
        // A stage by its number is no base in Docker either.
        let by_name =
            self.names[..number].iter().rposition(|other| other.as_deref() == Some(&name.to_ascii_lowercase()));
        Ok(match by_name {
            Some(stage) => Base::Stage(stage),
            None if name == "scratch" => Base::Scratch,
            None => Base::Image(ImageName { name, platform, strict }),
        })
    }

    /// Resolves `--from` of an instruction in a stage.
    pub fn origin(&self, from: &str, stage: usize, line: usize) -> Result<Origin> {
        let wrong = |why: String| Error::new(Some(line), why);
        // A stage may be named before it is defined.
        let lower = from.to_ascii_lowercase();
        if let Some(found) = self.names.iter().position(|name| name.as_deref() == Some(&lower)) {
            return Ok(Origin::Stage(found));
        }
        if let Ok(number) = from.parse::<usize>() {
            if number >= stage {
                return Err(wrong(format!("invalid stage index {from}: only stages above have a number")));
            }
            return Ok(Origin::Stage(number));
        }
        if from.is_empty() || from == "scratch" {
            return Err(wrong(format!("invalid from flag value \"{from}\"")));
        }
        let (platform, strict) = self.platform.clone();
        Ok(Origin::Image(ImageName { name: from.to_owned(), platform, strict }))
    }

    /// Adds a stage, which is needed by an instruction in `line`, to the order after those that it needs itself. `path`
    /// has the stages that need it.
    fn visit(
        &mut self,
        file: &Dockerfile,
        (number, line): (usize, usize),
        triggers: &Triggers,
        path: &mut Vec<usize>,
    ) -> Result<()> {
        if self.order.contains(&number) {
            return Ok(());
        }
        let stage = &file.stages[number];
        if path.contains(&number) {
            let name = stage.from.name.clone().unwrap_or_else(|| number.to_string());
            return Err(Error::new(Some(line), format!("circular dependency detected on stage: {name}")));
        }
        path.push(number);
        // The stages that it needs, and the lines that need them.
        let mut needed = BTreeMap::new();
        let onbuild: Vec<String> = match self.bases[number].clone() {
            Base::Scratch => Vec::new(),
            Base::Stage(base) => {
                needed.insert(base, stage.line);
                own_triggers(&file.stages[base].instructions)
            }
            Base::Image(image) => {
                let known = triggers.get(&image).cloned().unwrap_or_default();
                self.images.entry(image).or_insert(stage.line);
                known
            }
        };
        let parsed = onbuild
            .iter()
            .map(|trigger| dockerfile::parse_trigger(trigger, stage.line).map_err(|e| Error::new(Some(e.line), e.why)));
        let parsed = parsed.collect::<Result<Vec<_>>>()?;
        for instruction in parsed.iter().chain(&stage.instructions) {
            for from in origins(&instruction.what) {
                match self.origin(from, number, instruction.first)? {
                    Origin::Stage(other) => drop(needed.entry(other).or_insert(instruction.first)),
                    Origin::Image(image) => drop(self.images.entry(image).or_insert(instruction.first)),
                }
            }
        }
        for other in needed {
            self.visit(file, other, triggers, path)?;
        }
        path.pop();
        self.order.push(number);
        Ok(())
    }
}

/// Lists the `ONBUILD` instructions of a stage.
fn own_triggers(instructions: &[Instruction]) -> Vec<String> {
    let trigger = |instruction: &Instruction| match &instruction.what {
        What::Change(Change::OnBuild(trigger)) => Some(trigger.clone()),
        _ => None,
    };
    instructions.iter().filter_map(trigger).collect()
}

/// Parses a platform; the operating system or the architecture alone is enough.
fn parse_platform(text: &str) -> std::result::Result<Platform, String> {
    let host = Platform::host();
    match text {
        "linux" => Ok(host),
        "amd64" | "arm64" | "386" | "arm" | "riscv64" | "ppc64le" | "s390x" => {
            Ok(Platform { architecture: text.to_owned(), variant: None, ..host })
        }
        text => text.parse(),
    }
}

/// Lists the values of `from` in an instruction.
fn origins(what: &What) -> Vec<&str> {
    match what {
        What::Copy(CopyFiles { from: Some(from), .. }) => vec![from],
        What::Run(run) => {
            let fields = run.mounts.iter().flatten().filter(|(key, _)| key == "from");
            fields.filter_map(|(_, value)| value.as_deref()).filter(|from| !from.is_empty()).collect()
        }
        _ => vec![],
    }
}

/// The arguments that are defined without `ARG` (the Dockerfile reference, "Automatic platform ARGs").
fn predefined(target: &Platform) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for (prefix, platform) in [("TARGET", target), ("BUILD", &Platform::host())] {
        all.insert(format!("{prefix}PLATFORM"), platform.to_string());
        all.insert(format!("{prefix}OS"), platform.os.clone());
        all.insert(format!("{prefix}ARCH"), platform.architecture.clone());
        all.insert(format!("{prefix}VARIANT"), platform.variant.clone().unwrap_or_default());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(text: &str, target: Option<&str>) -> std::result::Result<Plan, String> {
        let file = dockerfile::parse(text).unwrap();
        let args = BTreeMap::from([("V".to_owned(), "2".to_owned())]);
        let request = Request { target, args: &args, platform: &Platform::host(), strict: false };
        Plan::new(&file, &request, &Triggers::new()).map_err(|e| e.to_string())
    }

    #[test]
    fn only_needed_stages_in_the_order_of_their_needs() {
        let text = "ARG V=1\nARG W=$V-w\nFROM a:$W AS x\nFROM x AS unused\nFROM scratch AS y\nCOPY --from=z /a /\n\
            COPY --from=0 /b /\nCOPY --from=img:1 /c /\nFROM x AS z\nRUN --mount=from=img:2,target=/m true\nFROM y\n";
        let all = plan(text, None).unwrap();
        assert_eq!((all.order, all.target), (vec![0, 3, 2, 4], 4));
        assert_eq!(all.bases[1], Base::Stage(0));
        let images: Vec<(&str, usize)> = all.images.iter().map(|(image, line)| (image.name.as_str(), *line)).collect();
        assert_eq!(images, [("a:2-w", 3), ("img:1", 8), ("img:2", 10)]);
        assert_eq!(plan(text, Some("Z")).unwrap().order, [0, 3]);
        assert_eq!(plan(text, Some("1")).unwrap().order, [0, 1]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, target, why) in [
            ("FROM a", Some("x"), "target stage \"x\" could not be found"),
            ("FROM $X", None, "line 1: base name ($X) should not be blank"),
            (
                "FROM a AS x\nCOPY --from=y / /\nFROM b AS y\nCOPY --from=x / /",
                None,
                "line 2: circular dependency detected on stage: y",
            ),
            ("FROM a\nCOPY --from=3 / /", None, "line 2: invalid stage index 3: only stages above have a number"),
            ("FROM --platform=x a", None, "line 1: FROM: `x` is not a platform (wanted OS/ARCH or OS/ARCH/VARIANT)"),
        ] {
            assert_eq!(plan(text, target).unwrap_err(), why, "{text}");
        }
    }
}
