use std::{collections::BTreeMap, ffi::OsString, io::Write as _};

use clap::FromArgMatches as _;

use super::{keys::KEYS, *};

/// Gathers from a command line, variables, and the text of a file.
fn gather(flags: &[&str], variables: &[(&str, &str)], file: &str) -> Result<Raw, ConfigError> {
    let mut on_disk = tempfile::NamedTempFile::new().unwrap();
    on_disk.write_all(file.as_bytes()).unwrap();
    let command = <Flags<255> as clap::Args>::augment_args(clap::Command::new("test").no_binary_name(true));
    let mut given = Flags::<255>::from_arg_matches(&command.get_matches_from(flags)).unwrap().given();
    given.file.get_or_insert(on_disk.path().to_owned());
    let variables: BTreeMap<_, _> = variables.iter().copied().collect();
    Raw::gather(given, &|name| variables.get(name).map(OsString::from), &[("log", "warn")])
}

fn load(flags: &[&str], variables: &[(&str, &str)], file: &str) -> Result<Config, ConfigError> {
    gather(flags, variables, file)?.check()
}

#[test]
fn flags_go_before_the_environment_before_the_file_before_defaults() {
    let slots = |flags: &[&str], variables: &[(&str, &str)], file| load(flags, variables, file).unwrap().worker.slots;
    let variables = [("TESSERA_SLOTS", "3")];
    assert_eq!(slots(&["--slots", "4"], &variables, "slots = 2"), 4);
    assert_eq!(slots(&[], &variables, "slots = 2"), 3);
    assert_eq!(slots(&[], &[("TESSERA_SLOTS", "")], "slots = 2"), 2);
    let cores = std::thread::available_parallelism().unwrap().get();
    assert_eq!(slots(&[], &[], ""), cores);
    assert_eq!(slots(&["--device", "cuda:1"], &[], ""), 1);
    assert_eq!(slots(&["--device", "cuda:1"], &[], "slots = 2"), 2);
}

#[test]
fn a_program_has_its_own_defaults_and_anything_else_goes_before_them() {
    assert_eq!(load(&[], &[], "").unwrap().telemetry.log, "warn");
    assert_eq!(load(&[], &[], "log = 'debug'").unwrap().telemetry.log, "debug");
}

#[test]
fn a_file_may_have_tables_numbers_and_units() {
    let file =
        "max_upload_bytes = 4096\nstuck_task = '2m'\n[limits]\nmax_side = 1_000\nmax_whole_picture_bytes = '1GB'";
    let config = load(&[], &[], file).unwrap();
    assert_eq!(config.coordinator.max_upload_bytes, 4096);
    assert_eq!(config.coordinator.stuck_task, Duration::from_secs(120));
    assert_eq!(config.coordinator.limits.max_side, 1000);
    assert_eq!(config.coordinator.limits.max_whole_picture_bytes, 1_000_000_000);
}

#[test]
fn what_follows_from_the_cache_folder_follows_it() {
    let config = load(&["--cache", "/a b/c"], &[], "").unwrap();
    assert_eq!(config.store, "file:///a%20b/c/store");
    assert_eq!(config.worker.model_cache, PathBuf::from("/a b/c/models"));
    assert_eq!(config.client.server, None);
}

#[test]
fn each_wrong_value_is_named_with_its_key_and_where_it_came_from() {
    let wrong = [
        ("log", "a=b=c"),
        ("log_format", "xml"),
        ("store", "/tmp"),
        ("broker", "http://rabbit"),
        ("farm", "My Farm"),
        ("start_timeout", "soon"),
        ("broker_patience", "0s"),
        ("broker_consumer_timeout", "x"),
        ("delivery_limit", "0"),
        ("health_listen", "8080"),
        ("listen", "localhost"),
        ("limits.max_pixels", "many"),
        ("limits.max_side", "4294967296"),
        ("limits.max_whole_picture_bytes", "1 pint"),
        ("max_upload_bytes", "-1"),
        ("max_active_jobs", "0"),
        ("dispatch_window", "0"),
        ("assemble_jobs", "1.5"),
        ("worker_silence", "1s"),
        ("stuck_task", "0"),
        ("device", "tpu"),
        ("worker_id", "a b"),
        ("slots", "0"),
        ("batch", "0"),
        ("model_cache_bytes", "x"),
        ("model_memory_bytes", "x"),
        ("beat_interval", "0"),
        ("longest_task", "x"),
        ("grace", "x"),
        ("server", "farm:7000"),
        ("cache_limit_bytes", "x"),
    ];
    for (name, text) in wrong {
        let variable = keys::find(name).unwrap().variable();
        let error = load(&[], &[(&variable, text)], "").unwrap_err().to_string();
        let beginning = format!("`{name}` is `{text}` (variable {variable}), and ");
        assert!(error.starts_with(&beginning), "{error}");
    }
    // Any text names a class or a folder, and what a processor has is asked when it is opened; everything else can be
    // wrong, and is tried above.
    let free = ["default_class", "cpu", "scratch", "cache", "model_cache"];
    assert_eq!(wrong.len() + free.len(), KEYS.len());

    let error = load(&["--slots", "no"], &[], "").unwrap_err().to_string();
    assert_eq!(error, "`slots` is `no` (flag --slots), and a whole number from 1 is wanted");
}

#[test]
fn a_file_with_an_unknown_key_is_refused() {
    let error = |file| load(&[], &[], file).unwrap_err().to_string();
    assert!(error("slot = 1").ends_with("has the key `slot`, which is none of Tessera's"));
    assert!(error("[limits]\nmax = 1").ends_with("has the key `limits.max`, which is none of Tessera's"));
    assert!(error("slots = [1]").ends_with("has the key `slots`, which is none of Tessera's"));
    assert!(error("slots").ends_with("is not TOML"));
}

#[test]
fn passwords_are_not_printed() {
    let variables = [("TESSERA_BROKER", "amqp://farm:geheim@rabbit"), ("TESSERA_STORE", "s3://id:geheim@bucket")];
    let raw = gather(&[], &variables, "").unwrap();
    let config = raw.check().unwrap();
    assert_eq!(config.broker.expose(), "amqp://farm:geheim@rabbit");
    let lines: Vec<_> = raw.lines().map(|(key, text, _)| format!("{} = {text}", key.name)).collect();
    assert!(lines.contains(&"broker = amqp://farm:***@rabbit".to_owned()), "{lines:?}");
    let printed = format!("{lines:?} {:?}", config.broker);
    assert!(!printed.contains("geheim"), "{printed}");
    let error = load(&[], &[("TESSERA_BROKER", "redis://farm:geheim@rabbit")], "").unwrap_err();
    assert!(!format!("{error} {error:?}").contains("geheim"), "{error}");
}

#[test]
fn what_lies_in_memory_cannot_be_shared() {
    let shared = |store, broker| {
        load(&["--store", store, "--broker", broker], &[], "")
            .unwrap()
            .require_shared()
            .map_err(|error| error.to_string())
    };
    assert_eq!(shared("s3://b", "amqp://r"), Ok(()));
    assert!(shared("s3://b", "memory:").unwrap_err().starts_with("`broker`"));
    assert!(shared("memory:", "amqp://r").unwrap_err().starts_with("`store`"));
}

#[test]
fn exporters_are_on_when_the_standard_variables_say_where() {
    let exports = |variables: &[(&str, &str)]| {
        let telemetry = load(&[], variables, "").unwrap().telemetry;
        (telemetry.traces, telemetry.metrics)
    };
    let everywhere = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317");
    assert_eq!(exports(&[]), (false, false));
    assert_eq!(exports(&[everywhere]), (true, true));
    assert_eq!(exports(&[everywhere, ("OTEL_METRICS_EXPORTER", "none")]), (true, false));
    assert_eq!(exports(&[everywhere, ("OTEL_SDK_DISABLED", "TRUE")]), (false, false));
    assert_eq!(exports(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector:4317")]), (true, false));
}
