//! `fleetctl` as a process against agents with made-up supervisors on our store.

#[path = "../../../agent/tests/cluster/machines.rs"]
#[allow(dead_code, reason = "the agents' own tests need more of it")]
mod machines;
#[path = "../../../agent/tests/cluster/store.rs"]
#[allow(dead_code, reason = "the agents' own tests need more of it")]
mod store;

use std::ffi::OsString;
use std::fs;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use machines::Cluster;
use store::Kind;

/// Where a child process of the test finds its arguments, one a line.
const ARGUMENTS: &str = "ORLOP_FLEETCTL_TEST_ARGUMENTS";
/// What the child prints before fleetctl's own output.
const MARK: &str = "~~~ fleetctl ~~~\n";

/// `fleetctl` itself, when this binary is started by one of the tests; else nothing.
#[test]
fn fleetctl_process() {
    let Ok(arguments) = std::env::var(ARGUMENTS) else {
        return;
    };
    let words = std::iter::once("fleetctl").chain(arguments.lines());
    print!("{MARK}");
    let code: ExitCode = orlop_cli::run(words.map(OsString::from).collect());
    // Past the test harness, which would say something of its own.
    std::process::exit(match code {
        code if code == ExitCode::SUCCESS => 0,
        code if code == ExitCode::FAILURE => 1,
        _ => 2,
    })
}

struct Outcome {
    code: i32,
    out: String,
    err: String,
}

fn fleetctl(cluster: &Cluster, words: &[&str]) -> Outcome {
    let api = cluster.machines[0].api.expect("the first machine serves");
    let mut arguments = vec![format!("--endpoint=http://{api}")];
    arguments.extend(words.iter().map(|w| (*w).to_owned()));
    let output = Command::new(std::env::current_exe().expect("the test is a file"))
        .args(["fleetctl_process", "--exact", "--nocapture"])
        .env(ARGUMENTS, arguments.join("\n"))
        .output()
        .expect("run fleetctl");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    let out = text(output.stdout);
    Outcome {
        code: output.status.code().expect("it ends by itself"),
        out: out.split_once(MARK).map_or("", |(_, out)| out).to_owned(),
        err: text(output.stderr),
    }
}

fn works(cluster: &Cluster, words: &[&str]) -> String {
    let outcome = fleetctl(cluster, words);
    assert_eq!(outcome.code, 0, "{words:?}: {}{}", outcome.out, outcome.err);
    outcome.out
}

#[test]
fn units_go_through_their_life_and_each_word_is_fleets() {
    let cluster = Cluster::new(Kind::Ours, 2);
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).display().to_string();
    let write = |name: &str, text: &str| fs::write(path(name), text).expect("write the unit");
    write(
        "hello.service",
        "# a comment\n[Unit]\nDescription=Says hello\n\n[Service]\nExecStart=/bin/sleep 100\n[X-Fleet]\nMachineID=m1\n",
    );
    write(
        "web@.service",
        "[Service]\nExecStart=/bin/web %i\n[X-Fleet]\nConflicts=web@*\n",
    );
    write(
        "all.service",
        "[Service]\nExecStart=/bin/all\n[X-Fleet]\nGlobal=true\n",
    );

    assert_eq!(
        works(
            &cluster,
            &["submit", &path("hello.service"), &path("web@.service")]
        ),
        ""
    );
    assert_eq!(
        works(&cluster, &["cat", "hello"]),
        "[Unit]\nDescription=Says hello\n\n[Service]\nExecStart=/bin/sleep 100\n\n[X-Fleet]\nMachineID=m1\n"
    );
    assert_eq!(
        works(&cluster, &["load", "hello.service"]),
        "Unit hello.service loaded on m1/10.0.0.1\n"
    );
    assert!(cluster.on("hello.service").is_empty());
    assert_eq!(
        works(&cluster, &["start", "hello"]),
        "Unit hello.service launched on m1/10.0.0.1\n"
    );
    assert_eq!(cluster.on("hello.service"), [1], "what is said is so");
    let started = works(&cluster, &["start", "web@1", "web@2"]);
    assert_eq!(started.lines().count(), 2, "{started}");
    assert_eq!(
        works(&cluster, &["start", &path("all.service")]),
        "Triggered global unit all.service start\n"
    );
    cluster.until("the global unit runs", |c| c.on("all.service").len() == 2);

    let third = fleetctl(&cluster, &["start", "web@3"]);
    assert_eq!(third.code, 1, "{}", third.out);
    for machine in ["m0/10.0.0.0", "m1/10.0.0.1"] {
        let reason = format!("  {machine}: conflicts with resident unit web@");
        assert!(third.err.contains(&reason), "{}", third.err);
    }
    let why = works(&cluster, &["why", "web@3"]);
    assert!(
        why.contains("launched is wanted") && why.contains("conflicts with"),
        "{why}"
    );

    cluster.until("all is reported", |c| {
        c.keys("/orlop/fleet/state/").len() == 5
    });
    assert_eq!(
        works(&cluster, &["list-machines"]),
        "MACHINE\tIP\t\tMETADATA\nm0\t10.0.0.0\tnumber=0\nm1\t10.0.0.1\tnumber=1\n"
    );
    let units = works(&cluster, &["list-units"]);
    let lines: Vec<&str> = units.lines().collect();
    assert_eq!(
        lines[..4],
        [
            "UNIT\t\tMACHINE\t\tACTIVE\tSUB",
            "all.service\tm0/10.0.0.0\tactive\trunning",
            "all.service\tm1/10.0.0.1\tactive\trunning",
            "hello.service\tm1/10.0.0.1\tactive\trunning",
        ]
    );
    assert_eq!(lines[6], "web@3.service\t-\t\t-\tpending");
    let files = works(
        &cluster,
        &[
            "list-unit-files",
            "--no-legend",
            "--fields=unit,dstate,state,target",
        ],
    );
    assert!(
        files.contains("all.service\tlaunched\t-\t\tglobal\n"),
        "{files}"
    );
    assert!(
        files.contains("web@.service\tinactive\tinactive\t-\n"),
        "{files}"
    );

    // The place that one leaves is the other's without another word.
    let stopped = fleetctl(&cluster, &["unload", "web@1"]);
    assert_eq!(
        (stopped.code, stopped.out.as_str()),
        (0, "Unit web@1.service inactive\n")
    );
    assert_eq!(
        stopped.err,
        "Successfully unloaded units [web@1.service].\n"
    );
    cluster.until("the third has its place", |c| {
        c.on("web@3.service").len() == 1
    });

    let stopped = fleetctl(&cluster, &["stop", "hello"]);
    assert_eq!(stopped.out, "Unit hello.service loaded on m1/10.0.0.1\n");
    assert_eq!(stopped.err, "Successfully stopped units [hello.service].\n");
    assert!(cluster.on("hello.service").is_empty());
    assert_eq!(
        works(&cluster, &["destroy", "hello"]),
        "Destroyed hello.service\n"
    );
    let gone = fleetctl(&cluster, &["destroy", "hello"]);
    assert_eq!(
        (gone.code, gone.err.as_str()),
        (1, "Unit hello.service does not exist.\n")
    );
    assert_eq!(fleetctl(&cluster, &["start"]).err, "No units given\n");
}

#[test]
fn a_start_that_fails_ends_with_its_cause() {
    let cluster = Cluster::new(Kind::Ours, 1);
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("bad.service");
    fs::write(&path, "[Service]\nExecStart=/bin/false\n").expect("write the unit");
    cluster.machines[0].supervisor.break_unit("bad.service");
    let start = Instant::now();
    let outcome = fleetctl(&cluster, &["start", &path.display().to_string()]);
    assert_eq!(outcome.code, 1);
    assert!(
        outcome
            .err
            .contains("Unit bad.service failed on m0/10.0.0.0: exit code 3"),
        "{}",
        outcome.err
    );
    assert!(
        start.elapsed() < Duration::from_secs(60),
        "it does not wait for what will not come"
    );
    // What differs is told and not taken, until it is to replace.
    fs::write(&path, "[Service]\nExecStart=/bin/other\n").expect("write the unit");
    let outcome = fleetctl(&cluster, &["submit", &path.display().to_string()]);
    assert!(
        outcome.err.contains("differs from local unit file"),
        "{}",
        outcome.err
    );
    let outcome = fleetctl(
        &cluster,
        &["submit", "--replace", &path.display().to_string()],
    );
    assert_eq!(outcome.code, 1);
    assert!(
        outcome
            .err
            .contains("can not replace Unit(bad.service) in state 'launched'")
    );
    let outcome = fleetctl(
        &cluster,
        &[
            "start",
            "--replace",
            "--no-block",
            &path.display().to_string(),
        ],
    );
    assert_eq!(outcome.out, "Triggered unit bad.service start\n");
    assert!(works(&cluster, &["cat", "bad"]).contains("/bin/other"));
}
