//! What a user of the cluster relies on.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use crate::machines::Cluster;
use crate::store::Kind;

/// Every scene on both stores.
macro_rules! scenes {
    ($($name:ident),* $(,)?) => {
        mod on_ours {
            $(#[test] fn $name() { super::$name(super::Kind::Ours); })*
        }
        mod on_etcd {
            $(#[test] fn $name() { super::$name(super::Kind::Etcd); })*
        }
    };
}

scenes![
    units_are_spread_started_stopped_and_destroyed,
    a_cut_off_machine_runs_on_and_stops_what_was_moved_when_it_returns,
    a_store_that_is_away_stops_and_moves_nothing,
    agents_that_die_and_return_move_nothing,
    a_lost_machine_is_replaced_and_starts_nothing_of_its_own_when_it_boots,
    the_api_takes_units_and_says_why_they_wait,
    agents_reach_a_store_that_speaks_tls_alone,
];

fn agents_reach_a_store_that_speaks_tls_alone(kind: Kind) {
    let cluster = Cluster::with_tls(kind, 2);
    cluster.submit("web.service", "Publish=www:80", "launched");
    cluster.until("it runs and is announced", |c| {
        c.on("web.service").len() == 1 && c.keys("/services/www/").len() == 1
    });
}

fn units_are_spread_started_stopped_and_destroyed(kind: Kind) {
    let cluster = Cluster::new(kind, 3);
    for n in 1..=3 {
        cluster.submit(&format!("web@{n}.service"), "Publish=www:80", "launched");
    }
    cluster.submit("everywhere.service", "Global=true", "launched");
    cluster.submit("big.service", "Memory=2000M", "launched");
    cluster.until("all that fit run", |c| {
        c.keys("/services/").len() == 3
            && c.machines.iter().all(|m| m.supervisor.running().len() == 2)
    });
    let machines: BTreeSet<_> = (1..=3)
        .flat_map(|n| cluster.on(&format!("web@{n}.service")))
        .collect();
    assert_eq!(machines.len(), 3, "one instance on each machine");
    assert_eq!(cluster.on("everywhere.service").len(), 3);
    assert!(cluster.on("big.service").is_empty());
    let services = cluster.keys("/services/www/");
    let keys: Vec<&str> = services.keys().map(String::as_str).collect();
    let expected = [
        "/services/www/web@1",
        "/services/www/web@2",
        "/services/www/web@3",
    ];
    assert_eq!(keys, expected);
    cluster.target("web@1.service", "inactive");
    cluster.destroy("web@2.service");
    cluster.target("everywhere.service", "loaded");
    cluster.until("what is not wanted is gone", |c| {
        c.on("web@1.service").is_empty()
            && c.on("web@2.service").is_empty()
            && c.on("everywhere.service").is_empty()
            && c.keys("/services/").len() == 1
            && c.keys("/orlop/fleet/state/web@2.service/").is_empty()
    });
    // A start that fails is told and not tried again.
    cluster
        .machines
        .iter()
        .for_each(|m| m.supervisor.break_unit("bad.service"));
    cluster.submit("bad.service", "", "launched");
    cluster.until("the failure is reported", |c| {
        let states = c.keys("/orlop/fleet/state/bad.service/");
        states.values().any(|state| state.contains("exit code 3"))
    });
    let starts = |c: &Cluster| {
        let events = c.events();
        events
            .iter()
            .filter(|(_, word, unit)| *word == "start" && unit == "bad.service")
            .count()
    };
    assert_eq!(starts(&cluster), 1);
}

fn a_cut_off_machine_runs_on_and_stops_what_was_moved_when_it_returns(kind: Kind) {
    let cluster = Cluster::new(kind, 3);
    for n in 1..=6 {
        cluster.submit(&format!("u{n}.service"), "", "launched");
    }
    let total = |c: &Cluster| -> usize {
        c.machines
            .iter()
            .map(|m| m.supervisor.running().len())
            .sum()
    };
    cluster.until("all run", |c| total(c) == 6);
    let cut = 2;
    let own = cluster.machines[cut].supervisor.running();
    assert_eq!(own.len(), 2);
    let before = cluster.events().len();
    cluster.machines[cut].way.cut();
    cluster.until("its units run elsewhere", |c| {
        own.iter().all(|unit| c.on(unit).iter().any(|n| *n != cut))
    });
    assert_eq!(
        cluster.machines[cut].supervisor.running(),
        own,
        "silence stops nothing"
    );
    assert_eq!(cluster.events().len(), before + 2, "and moves nothing else");
    cluster.machines[cut].way.mend();
    cluster.until("each unit runs once", |c| total(c) == 6);
    assert!(cluster.machines[cut].supervisor.running().is_disjoint(&own));
    let events = cluster.events();
    let stops: Vec<_> = events[before + 2..].iter().collect();
    assert!(
        stops
            .iter()
            .all(|(machine, word, _)| machine == "m2" && *word == "stop"),
        "{stops:?}"
    );
}

fn a_store_that_is_away_stops_and_moves_nothing(kind: Kind) {
    let mut cluster = Cluster::new(kind, 3);
    for n in 1..=6 {
        cluster.submit(&format!("u{n}.service"), "", "launched");
    }
    let running =
        |c: &Cluster| -> Vec<_> { c.machines.iter().map(|m| m.supervisor.running()).collect() };
    cluster.until("all run", |c| {
        running(c).iter().map(BTreeSet::len).sum::<usize>() == 6
    });
    let (before, events) = (running(&cluster), cluster.events());
    cluster.store.kill();
    // Longer than any lease, and than the time after which a machine is lost.
    let away = Instant::now();
    while away.elapsed() < Duration::from_secs(5) {
        assert_eq!(running(&cluster), before);
        thread::sleep(Duration::from_millis(100));
    }
    cluster.store.restart();
    cluster.submit("new.service", "", "launched");
    cluster.until("work goes on", |c| c.on("new.service").len() == 1);
    let mut after = cluster.events();
    after.retain(|(_, _, unit)| unit != "new.service");
    assert_eq!(after, events, "nothing was stopped, started or moved");
}

fn agents_that_die_and_return_move_nothing(kind: Kind) {
    let mut cluster = Cluster::new(kind, 2);
    for n in 1..=4 {
        cluster.submit(&format!("u{n}.service"), "", "launched");
    }
    cluster.until("all run", |c| c.events().len() == 4);
    let events = cluster.events();
    for round in 0..4 {
        // One of the two leads.
        let machine = &mut cluster.machines[round % 2];
        machine.kill_agent();
        machine.start_agent();
    }
    cluster.submit("new.service", "", "launched");
    cluster.until("work goes on", |c| c.on("new.service").len() == 1);
    let mut after = cluster.events();
    after.retain(|(_, _, unit)| unit != "new.service");
    assert_eq!(after, events);
}

fn a_lost_machine_is_replaced_and_starts_nothing_of_its_own_when_it_boots(kind: Kind) {
    let mut cluster = Cluster::new(kind, 2);
    cluster.submit("a.service", "MachineMetadata=number=0", "launched");
    cluster.submit("b@1.service", "", "launched");
    cluster.submit("b@2.service", "", "launched");
    cluster.until("all run", |c| c.events().len() == 3);
    let lost = 1;
    let own = cluster.machines[lost].supervisor.running();
    let moved = own.iter().next().expect("one of the two").clone();
    cluster.machines[lost].reboot();
    cluster.until("it runs elsewhere", |c| c.on(&moved) == [0]);
    let events = cluster.events().len();
    cluster.machines[lost].start_agent();
    cluster.submit("c.service", "MachineMetadata=number=1", "launched");
    cluster.until("the machine is there again", |c| {
        c.on("c.service") == [lost]
    });
    assert_eq!(cluster.events().len(), events + 1, "{:?}", cluster.events());
    assert_eq!(cluster.on(&moved), [0]);
}

fn the_api_takes_units_and_says_why_they_wait(kind: Kind) {
    let mut cluster = Cluster::new(kind, 2);
    let unit = r#"{"desiredState":"launched","options":[
        {"section":"Service","name":"ExecStart","value":"/bin/a"},
        {"section":"X-Fleet","name":"Memory","value":"MEMORY"}]}"#;
    let fits = unit.replace("MEMORY", "10M");
    assert_eq!(cluster.api("PUT", "/units/a.service", &fits).0, 201);
    assert_eq!(
        cluster.api("PUT", "/units/a.service", &fits).0,
        204,
        "the same again"
    );
    let large = unit.replace("MEMORY", "4G");
    assert_eq!(cluster.api("PUT", "/units/big.service", &large).0, 201);
    for (path, body, code) in [
        ("/units/none.service", r#"{"desiredState":"launched"}"#, 409),
        ("/units/a.service", r#"{"desiredState":"running"}"#, 400),
        (
            "/units/a.service",
            r#"{"name":"b.service","desiredState":"loaded"}"#,
            400,
        ),
        ("/units/a.zip", r#"{"desiredState":"loaded"}"#, 400),
        ("/units/bad.service", &unit.replace("MEMORY", "lots"), 400),
        ("/units/t@.service", &fits, 400),
    ] {
        let (status, answer) = cluster.api("PUT", path, body);
        assert_eq!(status, code, "{path} {answer}");
        assert!(answer.contains("\"error\""), "{answer}");
    }
    cluster.until("the unit runs", |c| {
        let (_, state) = c.api("GET", "/state/a.service", "");
        state.contains(r#""launched":true"#) && state.contains(r#""systemdActiveState":"active""#)
    });
    let (_, units) = cluster.api("GET", "/units", "");
    assert!(units.contains(r#""currentState":"launched""#), "{units}");
    let (_, why) = cluster.api("GET", "/why/big.service", "");
    assert_eq!(
        why.matches("insufficient memory: asks 4G").count(),
        2,
        "{why}"
    );
    let (_, why) = cluster.api("GET", "/why/a.service", "");
    assert_eq!(
        why.matches(r#""reason":null"#).count(),
        2,
        "it is on one and would fit on the other: {why}"
    );
    // A word about a machine's metadata lets a unit that waits for it run.
    cluster.submit("ssd.service", "MachineMetadata=disk=ssd", "launched");
    cluster.until("it waits", |c| {
        c.api("GET", "/why/ssd.service", "")
            .1
            .contains("metadata disk=ssd not present")
    });
    let patch = r#"[{"op":"add","path":"/m1/metadata/disk","value":"ssd"}]"#;
    assert_eq!(cluster.api("PATCH", "/machines", patch).0, 204);
    cluster.until("it runs there", |c| c.on("ssd.service") == [1]);
    assert_eq!(cluster.api("DELETE", "/units/a.service", "").0, 204);
    assert_eq!(cluster.api("DELETE", "/units/a.service", "").0, 404);
    cluster.until("it is gone", |c| c.on("a.service").is_empty());
    cluster.until("a leader has counted what it did", |c| {
        let is_there = |name: &str| {
            let (_, text) = c.ask("GET", "/metrics", "");
            let mut lines = text.lines();
            lines.any(|line| line.starts_with(name) && !line.ends_with(" 0"))
        };
        // The first machine need not be the one that leads.
        let has_led = is_there("fleet_engine_leader_start_time ");
        is_there("fleet_registry_operation_count_total{type=\"write\"} ")
            && (!has_led
                || is_there("fleet_engine_task_count_total{type=\"AttemptScheduleUnit\"} ")
                    && is_there("fleet_engine_reconcile_duration_second_sum "))
    });
    cluster.store.kill();
    cluster.until("the loss is told", |c| c.api("GET", "/units", "").0 == 503);
    assert_eq!(cluster.on("ssd.service"), [1]);
}
