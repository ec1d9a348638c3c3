//! The goldens runner: replays recorded cases of the reference programs and says, per operation, whether we agree.
//!
//! A set of cases is a folder with a `cases.json` and tensors beside it. There are three forms: `pixels` (one `op` per
//! case, [`pixels`]), `diffusion` (likewise, [`diffusion`]) and `detailers` (one `node` per case, [`detailers`]). Each
//! has a table from operation to function; an operation that is not in it counts as failed and is named. A function
//! computes what a case asks for and knows nothing of the answer; [`compare`] holds the two against each other, so
//! that every recorded output is compared and none by accident left out.
//!
//! Start with [`run`].

pub mod cases;
pub mod compare;
pub mod detailers;
pub mod diffusion;
mod flows;
mod networks;
pub mod pixels;
mod segs;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

use cases::{Case, Form, Output, Tensors, is_traced};
use compare::Closeness;

/// What a function that replays a case gives.
pub type Answer = Result<Got, Failure>;

/// What a case's own program computed: to be compared with what was recorded.
#[derive(Debug, Default)]
pub struct Got {
    /// Tensors by the names of the case's `outputs`.
    pub tensors: BTreeMap<String, cases::Tensor>,
    /// The rest, by the names of the case's `expect`.
    pub values: serde_json::Map<String, serde_json::Value>,
}

impl Got {
    /// Adds a tensor.
    pub fn tensor(mut self, name: impl Into<String>, tensor: cases::Tensor) -> Self {
        self.tensors.insert(name.into(), tensor);
        self
    }

    /// Adds a value.
    pub fn value(mut self, name: &str, value: impl Into<serde_json::Value>) -> Self {
        self.values.insert(name.to_owned(), value.into());
        self
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Failure {
    /// The operation, or a part of it that is named here, does not exist yet.
    NotBuilt(String),
    /// The program refused the input with an error of its own, which some cases expect.
    Refused(String),
    /// The case cannot be read, or the program broke its promise.
    Broken(String),
}

impl From<imaging::frames::PixelError> for Failure {
    fn from(error: imaging::frames::PixelError) -> Self {
        Self::Refused(error.to_string())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Broken(format!("{error:#}"))
    }
}

/// What became of the cases of one operation or node.
#[derive(Debug)]
pub struct Group {
    /// The operation or node.
    pub name: String,
    /// Names of the cases that agree.
    pub passed: Vec<String>,
    /// Cases that do not, and why.
    pub failed: Vec<(String, String)>,
    /// Cases that cannot be answered yet, and what is missing.
    pub not_built: Vec<(String, String)>,
    /// The case that comes closest to its tolerance, or exceeds it most, and by what.
    pub worst: Option<(String, Closeness)>,
}

impl Group {
    /// Whether every case agrees.
    pub fn is_passed(&self) -> bool {
        self.failed.is_empty() && self.not_built.is_empty()
    }

    fn note(&mut self, case: &str, closeness: Option<Closeness>) {
        if let Some(closeness) = closeness
            && self.worst.as_ref().is_none_or(|(_, worst)| closeness.ratio > worst.ratio)
        {
            self.worst = Some((case.to_owned(), closeness));
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.is_passed() { "passed" } else { "failed" };
        let all = self.passed.len() + self.failed.len() + self.not_built.len();
        write!(f, "{verdict}  {}: {} of {all}", self.name, self.passed.len())?;
        if let Some((case, reason)) = self.failed.first() {
            write!(f, ", {} wrong, first {case}: {reason}", self.failed.len())?;
        }
        if !self.not_built.is_empty() {
            let mut missing: Vec<_> = self.not_built.iter().map(|(_, what)| what.as_str()).collect();
            missing.sort_unstable();
            missing.dedup();
            write!(f, ", {} not built yet ({})", self.not_built.len(), missing.join(", "))?;
        }
        if let Some((case, closeness)) = &self.worst {
            write!(f, ", worst {case}: {closeness}")?;
        }
        Ok(())
    }
}

/// Replays every case under `dir`, or those of the operations and nodes in `only` if there are any.
///
/// `dir` is a set of cases, or a folder of such sets. Groups come in the order of the files. An operation asked for
/// that no case has is an error, as is a folder without cases: neither must pass for success.
pub fn run(dir: &Path, only: &[String]) -> anyhow::Result<Vec<Group>> {
    let mut groups: Vec<Group> = Vec::new();
    for set in sets(dir)? {
        for case in cases::read(&set).with_context(|| format!("cannot read the cases of {}", set.display()))? {
            if !only.is_empty() && !only.contains(&case.group) {
                continue;
            }
            let at = groups.iter().position(|group| group.name == case.group).unwrap_or_else(|| {
                let name = case.group.clone();
                groups.push(Group { name, passed: vec![], failed: vec![], not_built: vec![], worst: None });
                groups.len() - 1
            });
            let group = &mut groups[at];
            match replay(&case) {
                Ok(closeness) => {
                    group.passed.push(case.name.clone());
                    group.note(&case.name, closeness);
                }
                Err(Miss::NotBuilt(what)) => group.not_built.push((case.name, what)),
                Err(Miss::Wrong(reason, closeness)) => {
                    group.note(&case.name, closeness);
                    group.failed.push((case.name, reason));
                }
            }
        }
    }
    if let Some(name) = only.iter().find(|name| !groups.iter().any(|group| group.name == **name)) {
        bail!("no case under {} has the operation or node `{name}`", dir.display());
    }
    if groups.is_empty() {
        bail!("there are no cases under {}", dir.display());
    }
    Ok(groups)
}

/// The folders with a `cases.json`: `dir` itself, or those directly in it.
fn sets(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if dir.join("cases.json").exists() {
        return Ok(vec![dir.to_owned()]);
    }
    let entries = std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut sets = entries.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<Vec<_>>>()?;
    sets.retain(|path| path.join("cases.json").exists());
    sets.sort();
    Ok(sets)
}

enum Miss {
    NotBuilt(String),
    Wrong(String, Option<Closeness>),
}

/// Computes one case and compares it. What comes back is how close its closest call was, if it has tensors.
fn replay(case: &Case) -> Result<Option<Closeness>, Miss> {
    let wrong = |reason: String| Miss::Wrong(reason, None);
    let table = match case.form {
        Form::Pixels => pixels::OPS,
        Form::Diffusion => diffusion::OPS,
        Form::Detailers => detailers::NODES,
    };
    let Some((_, replay)) = table.iter().find(|(name, _)| *name == case.group) else {
        return Err(Miss::NotBuilt(case.group.clone()));
    };
    let tensors = case.tensors().map_err(|error| wrong(format!("{error:#}")))?;
    let refusal_is_right = case.expects_refusal() || case.expects_nan(&tensors);
    match replay(case, &tensors) {
        Err(Failure::NotBuilt(what)) => Err(Miss::NotBuilt(what)),
        Err(Failure::Broken(reason)) => Err(wrong(reason)),
        Err(Failure::Refused(_)) if refusal_is_right => Ok(None),
        Err(Failure::Refused(reason)) => Err(wrong(format!("refused: {reason}"))),
        Ok(_) if case.expects_refusal() => Err(wrong("a refusal is expected".to_owned())),
        Ok(got) => check(case, &tensors, &got),
    }
}

/// Compares every output and every expected value of a case.
fn check(case: &Case, tensors: &Tensors, got: &Got) -> Result<Option<Closeness>, Miss> {
    let mut worst: Option<Closeness> = None;
    let mut reason: Option<String> = None;
    // What was recorded inside is compared as far as it was recorded: the middle steps of large batches were not.
    let inside = got.tensors.keys().filter(|name| is_traced(name) && case.tensor(tensors, name).is_ok());
    let inside = inside.map(|name| Output { name: name.clone(), tensor: name.clone() });
    for output in inside.chain(case.outputs()) {
        let want = case.tensor(tensors, &output.tensor).map_err(|error| Miss::Wrong(format!("{error:#}"), None))?;
        let Some(got) = got.tensors.get(&output.name) else {
            return Err(Miss::Wrong(format!("`{}` was not computed", output.name), None));
        };
        let pixels;
        let want = match case.form {
            // Of its outputs, bytes are pixels of k / 255.
            Form::Detailers if want.is_bytes => {
                pixels = cases::Tensor { data: want.data.iter().map(|byte| byte / 255.0).collect(), ..want.clone() };
                &pixels
            }
            Form::Detailers | Form::Pixels | Form::Diffusion => want,
        };
        let closeness = compare::tensors(&output.name, got, want, &case.tolerance(&output.name))
            .map_err(|reason| Miss::Wrong(reason, None))?;
        if let (None, Some(why)) = (&reason, closeness.miss()) {
            reason = Some(why);
        }
        if worst.as_ref().is_none_or(|worst| closeness.ratio > worst.ratio) {
            worst = Some(closeness);
        }
    }
    for (name, want) in case.expected() {
        let Some(got) = got.values.get(&name) else {
            return Err(Miss::Wrong(format!("`{name}` was not computed"), worst));
        };
        if let Err(why) = compare::values(&name, got, want) {
            return Err(Miss::Wrong(why, worst));
        }
    }
    match reason {
        None => Ok(worst),
        Some(reason) => Err(Miss::Wrong(reason, worst)),
    }
}
