//! Flags, then environment, then file, then defaults: one text per key, and where it came from.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
};

use clap::{Arg, ArgMatches, Command, builder::ValueParser};

use super::{
    ConfigError,
    keys::{self, KEYS, Key},
};
use crate::secret::hide_password;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The command line.
    Flag,
    /// The environment.
    Variable,
    /// The file.
    File(PathBuf),
    /// Nobody said.
    Default,
}

/// Every key as text, unchecked.
#[derive(Debug, Clone)]
pub struct Raw {
    values: BTreeMap<&'static str, (String, Origin)>,
    /// Whether spans are exported.
    pub(super) traces: bool,
    /// Whether measurements are exported.
    pub(super) metrics: bool,
}

/// The flags of the keys that belong to `PARTS` (a union of the constants in [`keys`]), for `#[command(flatten)]`.
#[derive(Debug, Clone, Default)]
pub struct Flags<const PARTS: u8> {
    values: BTreeMap<&'static str, String>,
    file: Option<PathBuf>,
}

impl<const PARTS: u8> Flags<PARTS> {
    /// The keys given on the command line, and the file named there.
    pub fn given(self) -> Given {
        Given { values: self.values, file: self.file }
    }
}

/// What a command line said about the configuration.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// By key.
    pub values: BTreeMap<&'static str, String>,
    /// The file to read.
    pub file: Option<PathBuf>,
}

fn id(key: &Key) -> String {
    format!("config.{}", key.name)
}

impl<const PARTS: u8> clap::Args for Flags<PARTS> {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new("config.file")
            .long("config")
            .value_name("FILE")
            .value_parser(ValueParser::path_buf())
            .help("Configuration in TOML [env: TESSERA_CONFIG] [default: none]")
            .help_heading("Configuration");
        let flags = KEYS.iter().filter(|key| key.parts & PARTS != 0).map(|key| {
            Arg::new(id(key))
                .long(key.flag())
                .value_name(key.unit)
                .help(format!("{} [env: {}] [default: {}]", key.help, key.variable(), key.default_text()))
                .help_heading("Configuration")
        });
        command.arg(file).args(flags)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<const PARTS: u8> clap::FromArgMatches for Flags<PARTS> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for key in KEYS.iter().filter(|key| key.parts & PARTS != 0) {
            if let Some(text) = matches.get_one::<String>(&id(key)) {
                self.values.insert(key.name, text.clone());
            }
        }
        if let Some(file) = matches.get_one::<PathBuf>("config.file") {
            self.file = Some(file.clone());
        }
        Ok(())
    }
}

impl Raw {
    /// Lays flags over the environment over the file over `defaults` over the table's own defaults.
    ///
    /// `defaults` are those of one program, such as a quieter log. An empty variable counts as not set.
    pub fn gather(
        given: Given,
        environment: &dyn Fn(&str) -> Option<OsString>,
        defaults: &[(&'static str, &str)],
    ) -> Result<Self, ConfigError> {
        let variable = |name: &str| environment(name).filter(|value| !value.is_empty());
        let mut values = BTreeMap::new();
        for key in KEYS {
            values.insert(key.name, (key.default_value(), Origin::Default));
        }
        for &(name, text) in defaults {
            values.insert(name, (text.to_owned(), Origin::Default));
        }
        if let Some(file) = given.file.or_else(|| variable("TESSERA_CONFIG").map(PathBuf::from)) {
            for (key, text) in read_file(&file)? {
                values.insert(key, (text, Origin::File(file.clone())));
            }
        }
        for key in KEYS {
            if let Some(text) = variable(&key.variable()) {
                let text = text.into_string().map_err(|_| ConfigError::NotText { variable: key.variable() })?;
                values.insert(key.name, (text, Origin::Variable));
            }
        }
        for (name, text) in given.values {
            values.insert(name, (text, Origin::Flag));
        }
        let exports = |signal: &str| {
            let is = |name: &str, value: &str| variable(name).is_some_and(|text| text.eq_ignore_ascii_case(value));
            let endpoint = variable("OTEL_EXPORTER_OTLP_ENDPOINT").is_some()
                || variable(&format!("OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")).is_some();
            endpoint && !is("OTEL_SDK_DISABLED", "true") && !is(&format!("OTEL_{signal}_EXPORTER"), "none")
        };
        Ok(Self { values, traces: exports("TRACES"), metrics: exports("METRICS") })
    }

    /// The text of a key, checked by `read`; the error names the key and where the text came from.
    pub(super) fn read<T>(
        &self,
        name: &'static str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        let (text, origin) = self.values.get(name).expect("the table holds every key that is read");
        let key = keys::find(name).expect("the table holds every key that is read");
        read(text).map_err(|why| ConfigError::Value {
            key: name,
            text: shown(key, text),
            origin: OriginOf { key, origin: origin.clone() }.to_string(),
            why,
        })
    }

    /// Every key with its text, passwords hidden, and where it came from.
    pub fn lines(&self) -> impl Iterator<Item = (&'static Key, String, &Origin)> {
        KEYS.iter().map(|key| {
            let (text, origin) = &self.values[key.name];
            (key, shown(key, text), origin)
        })
    }

    /// Whether somebody said what `name` is.
    pub fn is_given(&self, name: &str) -> bool {
        self.values.get(name).is_some_and(|(text, origin)| *origin != Origin::Default && !text.is_empty())
    }
}

/// A value as it may be shown.
fn shown(key: &Key, text: &str) -> String {
    // Any address may hold a password, wherever somebody put it.
    if key.secret || text.contains("://") { hide_password(text) } else { text.to_owned() }
}

struct OriginOf {
    key: &'static Key,
    origin: Origin,
}

impl fmt::Display for OriginOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Flag => write!(f, "flag --{}", self.key.flag()),
            Origin::Variable => write!(f, "variable {}", self.key.variable()),
            Origin::File(path) => write!(f, "file {}", path.display()),
            Origin::Default => f.write_str("default"),
        }
    }
}

fn read_file(path: &Path) -> Result<Vec<(&'static str, String)>, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::File { path: path.to_owned(), source })?;
    let table: toml::Table =
        text.parse().map_err(|source| ConfigError::Toml { path: path.to_owned(), source: Box::new(source) })?;
    let mut values = Vec::new();
    flatten(path, "", table, &mut values)?;
    Ok(values)
}

fn flatten(
    path: &Path,
    prefix: &str,
    table: toml::Table,
    values: &mut Vec<(&'static str, String)>,
) -> Result<(), ConfigError> {
    for (name, value) in table {
        let name = format!("{prefix}{name}");
        let text = match value {
            toml::Value::Table(table) => {
                flatten(path, &format!("{name}."), table, values)?;
                continue;
            }
            toml::Value::String(text) => text,
            toml::Value::Array(_) => return Err(ConfigError::Unknown { path: path.to_owned(), key: name }),
            other => other.to_string(),
        };
        match keys::find(&name) {
            Some(key) => values.push((key.name, text)),
            None => return Err(ConfigError::Unknown { path: path.to_owned(), key: name }),
        }
    }
    Ok(())
}
