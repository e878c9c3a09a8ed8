//! Configurations as people write them, and as they should not, from text to plan.

use orlop_config::{Base, Input, Kind, Machine, Plan, Problem, compile, load};

#[path = "machine/compiling.rs"]
mod compiling;
#[path = "machine/hostile.rs"]
mod hostile;
#[path = "machine/reading.rs"]
mod reading;
#[path = "machine/samples.rs"]
mod samples;

fn input(kind: Kind, name: &str, text: &str) -> Input {
    Input {
        name: name.to_owned(),
        kind,
        text: text.as_bytes().to_vec(),
    }
}

fn user_data(text: &str) -> Input {
    input(
        Kind::CloudConfig,
        "user-data",
        &format!("#cloud-config\n{text}"),
    )
}

/// Reads a cloud-config without its first line; the problems as lines.
fn read(text: &str) -> (Machine, Vec<String>) {
    let (machine, problems) = load(vec![user_data(text)]);
    (machine, problems.iter().map(Problem::to_string).collect())
}

/// Reads and compiles a cloud-config that has no problems.
fn plan(text: &str) -> Plan {
    let (machine, problems) = read(text);
    assert_eq!(problems, [""; 0]);
    let plan = compile(&machine, &base());
    assert_eq!(lines(&plan.problems), [""; 0]);
    plan
}

fn base() -> Base<'static> {
    Base {
        passwd: "root:x:0:0:root:/root:/usr/sbin/nologin\ncore:x:500:500:Operator:/home/core:/bin/bash\n",
        group: "root:x:0:\nwheel:x:10:core\nsudo:x:27:core\ncore:x:500:\n",
        shell: "/bin/bash",
        unit: &|name| {
            (name == "late.service").then(|| "[Install]\nWantedBy=multi-user.target\n".to_owned())
        },
        ..Base::default()
    }
}

fn lines(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(Problem::to_string).collect()
}

fn content<'a>(plan: &'a Plan, path: &str) -> &'a str {
    let file = plan.files.iter().rev().find(|file| file.path == path);
    std::str::from_utf8(&file.unwrap_or_else(|| panic!("no file {path}")).content).expect("text")
}

fn link<'a>(plan: &'a Plan, path: &str) -> Option<&'a str> {
    let link = plan.links.iter().find(|link| link.path == path);
    link.map(|link| link.target.as_str())
}
