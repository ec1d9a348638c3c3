//! `tessera config`: what is in effect, and what there is.

use serde_json::json;
use service::{
    config::{Origin, Raw, keys::KEYS},
    report::with_hint,
};

use crate::{cli, exit::Outcome, output};

/// Prints the configuration in effect, or every key there is.
pub fn run(args: cli::Config) -> Outcome {
    if args.keys {
        list(args.json);
        return Ok(());
    }
    let told = |error: service::config::ConfigError| {
        let hint = error.hint();
        with_hint(error, hint)
    };
    let raw = Raw::gather(args.config.given(), &|name| std::env::var_os(name), &[]).map_err(told)?;
    show(&raw, args.json);
    raw.check().map_err(told)?;
    Ok(())
}

fn show(raw: &Raw, json: bool) {
    let origin = |origin: &Origin| match origin {
        Origin::Flag => "flag".to_owned(),
        Origin::Variable => "environment".to_owned(),
        Origin::File(path) => format!("file {}", path.display()),
        Origin::Default => "default".to_owned(),
    };
    if json {
        let values = raw
            .lines()
            .map(|(key, text, from)| (key.name.to_owned(), json!({ "value": text, "origin": origin(from) })));
        return output::json(&serde_json::Value::Object(values.collect()));
    }
    // In TOML, keys in tables come after those that are in none.
    let (tables, plain): (Vec<_>, Vec<_>) = raw.lines().partition(|(key, ..)| key.name.contains('.'));
    let mut table = "";
    for (key, text, from) in plain.into_iter().chain(tables) {
        let name = match key.name.split_once('.') {
            Some((its_table, name)) => {
                if its_table != table {
                    table = its_table;
                    output::line(&format!("[{table}]"));
                }
                name
            }
            None => key.name,
        };
        let text = serde_json::Value::from(text);
        let note = if text == "" { key.default_text().to_owned() } else { origin(from) };
        output::line(&format!("{:50} # {note}", format!("{name} = {text}")));
    }
}

fn list(json: bool) {
    if json {
        let keys = KEYS.iter().map(|key| {
            json!({
                "key": key.name,
                "flag": format!("--{}", key.flag()),
                "variable": key.variable(),
                "unit": key.unit,
                "default": key.default_text(),
                "help": key.help,
            })
        });
        return output::json(&keys.collect());
    }
    for key in KEYS {
        output::line(&format!("{} ({}; default: {})", key.name, key.unit, key.default_text()));
        output::line(&format!("    {}", key.help));
        output::line(&format!("    --{}, {}", key.flag(), key.variable()));
    }
}
