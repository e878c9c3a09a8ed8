//! The directives, one by one: each row is a line of a unit file and what must come of it.

mod confining;
mod kinds;
mod refused;
mod services;

use orlop_unit::{
    Dependency, Loaded, Loader, MemoryStore, Relation, Service, SpecifierContext, Unit, UnitName,
};

const DIRECTORY: &str = "/etc/systemd/system";

/// Reads one file as the supervisor would if it could carry everything out.
fn read(name: &str, text: &str) -> Loaded {
    let store = MemoryStore::new().file(&format!("{DIRECTORY}/{name}"), text);
    let context = SpecifierContext::default();
    Loader::new(&[DIRECTORY], &store, &context)
        .reading_all()
        .load(&UnitName::parse(name).unwrap())
}

fn messages(loaded: &Loaded) -> Vec<String> {
    loaded.problems.iter().map(ToString::to_string).collect()
}

#[track_caller]
fn good(name: &str, text: &str) -> Unit {
    let loaded = read(name, text);
    assert_eq!(messages(&loaded), [""; 0], "{text}");
    loaded.unit.expect("a unit")
}

/// The service with these lines, beside a command.
#[track_caller]
fn service(lines: &str) -> Service {
    let text = format!("[Service]\nExecStart=/bin/true\n{lines}\n");
    good("a.service", &text)
        .service()
        .expect("a service")
        .as_ref()
        .clone()
}

/// The single message about a file.
#[track_caller]
fn message(name: &str, text: &str) -> String {
    let messages = messages(&read(name, text));
    assert_eq!(messages.len(), 1, "{text}: {messages:?}");
    messages[0]
        .strip_prefix(&format!("{DIRECTORY}/{name}:"))
        .unwrap_or(&messages[0])
        .to_owned()
}

fn has(unit: &Unit, relation: Relation, on: &str) -> bool {
    unit.dependencies.contains(&Dependency {
        relation,
        on: UnitName::parse(on).unwrap(),
    })
}
