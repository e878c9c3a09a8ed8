//! PID 1 as a supervisor: what units are promised, and how the machine ends.

use anyhow::{Context as _, Result, ensure};
use orlop_qemu::guest::{BOOT_PATIENCE, Guest, STOP_PATIENCE};
use orlop_tests::Scenario;

const USER_DATA: &str = include_str!("supervisor.yaml");

/// What scripts in the guest begin with: the main process of a unit, and a wait of at most a minute for a command to succeed.
const PRELUDE: &str = "\
pid_of() { systemctl show -P MainPID $1.service | grep -v '^0$'; }
until_true() { n=600; until eval \"$1\"; do n=$((n - 1)); [ $n -gt 0 ] || { echo \"never: $1\"; return 1; }; sleep 0.1; done; }
is_new() { new=$(pid_of $1); [ -n \"$new\" ] && [ \"$new\" != $2 ]; }
";

/// A command line that runs `script` as root.
fn as_root(script: &str) -> String {
    format!("sudo sh -s 2>&1 <<'END'\n{PRELUDE}{script}\nexit 0\nEND")
}

/// A check of a script run by root, of which the output has all of `parts` in it.
fn says(scenario: &mut Scenario, sentence: &str, script: &str, parts: &[&str]) {
    scenario.command(sentence, &as_root(script), |text| {
        parts.iter().all(|part| text.contains(part))
    });
}

/// Runs `script` as root; it prints just these lines.
fn prints(scenario: &mut Scenario, sentence: &str, script: &str, lines: &[&str]) {
    scenario.prints(sentence, &as_root(script), lines);
}

fn let_in(scenario: &mut Scenario) {
    scenario.need("the machine comes up and lets its operator in", |guest| {
        guest.wait_for_ssh().map(|_| ())
    });
}

#[test]
fn units_do_what_their_files_say() {
    let mut bridge = Scenario::start("test-units", USER_DATA, |_| Ok(()));
    let_in(&mut bridge);
    services_are_restarted_as_they_ask(&mut bridge);
    commands_that_fail_are_told(&mut bridge);
    settings_reach_the_process(&mut bridge);
    nothing_is_left_of_a_process(&mut bridge);
    bridge.command_becomes(
        "`journalctl -f` shows lines as they are written, and only those",
        &as_root(
            "systemctl start talk.service
            rm -f /run/followed; journalctl -f -n 0 -o cat -u talk.service >/run/followed & follower=$!
            until_true 'ls -l /proc/$follower/fd | grep -q inotify'
            systemctl start talk.service
            until_true '[ $(grep -c word /run/followed) -ge 2 ]'
            kill $follower; grep word /run/followed | sort",
        ),
        |text| text.lines().eq(["first word", "second word"]),
    );
    prints(
        &mut bridge,
        "the kernel finds modprobe when it wants a module",
        "grep -c '^dummy ' /proc/modules
         /bin/busybox ip link add ballast type dummy && grep -c '^dummy ' /proc/modules
         cat /proc/sys/kernel/modprobe",
        &["0", "1", "/sbin/modprobe"],
    );
    bridge.check("SIGTERM restarts it", |guest| {
        let from = guest.log.text().len();
        guest.ssh()?.output("sudo kill -TERM 1")?;
        guest.wait_for_console("rebooting: asked by a signal", from, STOP_PATIENCE)?;
        guest
            .wait_for_console("Linux version", from, STOP_PATIENCE)
            .map(|_| ())
    });
    bridge.cut_power();
    bridge.finish();
}

fn services_are_restarted_as_they_ask(bridge: &mut Scenario) {
    prints(
        bridge,
        "a main process that is killed is followed by another, after RestartSec= and not before",
        "old=$(pid_of pump); killed=$(cut -d' ' -f1 /proc/uptime); kill -9 $old
         until_true 'is_new pump $old'
         until_true '[ $(wc -l </run/pump) = 2 ]'
         wc -l </sys/fs/cgroup/system.slice/pump.service/cgroup.procs
         echo \"$killed $(tail -n 1 /run/pump)\" | awk '{ print ($2 - $1 >= 2) }'
         systemctl is-active pump.service",
        &["1", "1", "active"],
    );
    prints(
        bridge,
        "Restart=on-failure leaves alone what ends by a polite signal",
        "kill -TERM $(pid_of pump)
         until_true '[ \"$(systemctl is-active pump.service)\" = inactive ]'
         sleep 3; systemctl is-active pump.service; wc -l </run/pump",
        &["inactive", "2"],
    );
    prints(
        bridge,
        "Restart=always does not, but an operator's stop is the end",
        "old=$(pid_of bilge); kill -TERM $old
         until_true 'is_new bilge $old' && echo again
         systemctl stop bilge.service; sleep 1; systemctl is-active bilge.service",
        &["again", "inactive"],
    );
    prints(
        bridge,
        "a unit that ends again and again is given up at its start limit",
        "systemctl start flap.service
         until_true '[ \"$(systemctl is-active flap.service)\" = failed ]'
         wc -l </run/flap
         systemctl status flap.service | grep -q 'Reason:.*started 3 times in 600 s' && echo 'and told'
         systemctl reset-failed flap.service; systemctl is-active flap.service
         systemctl start flap.service && echo 'may start again'",
        &["3", "and told", "inactive", "may start again"],
    );
}

fn commands_that_fail_are_told(bridge: &mut Scenario) {
    prints(
        bridge,
        "a command with `-` may fail or be missing",
        "systemctl start lenient.service && echo fine
         until_true '[ $(journalctl --no-pager -o cat -u lenient.service | grep -c \"lenient ran\") = 1 ]' && echo once",
        &["fine", "once"],
    );
    says(
        bridge,
        "ExecStartPre= that fails is the end of the start, and systemctl says so",
        "systemctl start strict.service; echo \"status $?\"
         systemctl is-active strict.service; ls /run/strict",
        &[
            "ExecStartPre=",
            "exited with status 3",
            "status 1",
            "failed",
            "No such file",
        ],
    );
    says(
        bridge,
        "what requires it is not started, and systemctl names the one to blame",
        "systemctl start needy.service; echo \"status $?\"
         systemctl is-active needy.service; ls /run/needy",
        &[
            "dependency",
            "strict.service",
            "status 1",
            "inactive",
            "No such file",
        ],
    );
    bridge.command(
        "a program that is missing is one clear line of the unit's log",
        &as_root(
            "systemctl start missing.service >/dev/null 2>&1; echo \"status $?\"
             until_true 'journalctl --no-pager -o cat -u missing.service | grep -q no-such-program'
             journalctl --no-pager -o cat -u missing.service",
        ),
        |text| {
            let named: Vec<&str> = text
                .lines()
                .filter(|line| line.contains("no-such-program"))
                .collect();
            text.starts_with("status 1\n")
                && matches!(named[..], [line] if line.contains("No such file") && line.contains("203/EXEC"))
        },
    );
}

fn settings_reach_the_process(bridge: &mut Scenario) {
    prints(
        bridge,
        "Environment=, its file and the drop-in are applied in their order",
        "systemctl start dressed.service; cat /run/dressed",
        &["dropped|two words|a file|from the file|"],
    );
    prints(
        bridge,
        "a template's specifiers are its instance's",
        "systemctl start lamp@port-side.service; cat /run/lamp",
        &["port-side port/side lamp@port-side.service lamp"],
    );
    prints(
        bridge,
        "units start after those that they need",
        "systemctl start sail.service; cat /var/order",
        &["start keel", "start mast", "start sail"],
    );
    prints(
        bridge,
        "what is needed is not stopped from under those that need it, but with them",
        "systemctl stop keel.service; tail -n 3 /var/order
         systemctl is-active keel.service mast.service sail.service
         systemctl start sail.service; systemctl is-active keel.service",
        &[
            "stop sail",
            "stop mast",
            "stop keel",
            "inactive",
            "inactive",
            "inactive",
            "active",
        ],
    );
}

fn nothing_is_left_of_a_process(bridge: &mut Scenario) {
    prints(
        bridge,
        "a unit's processes are its own however they forked, and go with it",
        "systemctl start parent.service
         until_true '[ $(wc -l </sys/fs/cgroup/system.slice/parent.service/cgroup.procs) = 5 ]' && echo five
         systemctl stop parent.service; systemctl is-active parent.service
         ls -d /sys/fs/cgroup/system.slice/parent.service 2>/dev/null
         ps | grep -cE 'sleep [1-4]{5}$'",
        &["five", "inactive", "0"],
    );
    prints(
        bridge,
        "orphans that end are reaped",
        "for i in $(seq 60); do (true & true &); done
         until_true '! grep -l \"^State:.Z\" /proc/[0-9]*/status 2>/dev/null | grep -q .' && echo none",
        &["none"],
    );
}

/// The console has a line with `text` from byte `from` on, and the machine boots again and lets us in.
fn comes_back(guest: &mut Guest, from: usize, text: &str) -> Result<()> {
    guest.wait_for_console(text, from, BOOT_PATIENCE)?;
    guest.wait_for_console("Linux version", from, BOOT_PATIENCE)?;
    guest.wait_for_ssh().map(|_| ())
}

/// What was found on the data disk when it was mounted behind byte `from` of the console.
fn was_unmounted(guest: &mut Guest, from: usize) -> Result<bool> {
    let line = guest.wait_for_console("holds the data volume", from, BOOT_PATIENCE)?;
    Ok(!line.contains("it is checked, for it was not unmounted"))
}

#[test]
fn every_way_to_end_the_machine_ends_it_in_order() {
    let up = ["start keel", "start mast", "start sail"];
    let down = ["stop sail", "stop mast", "stop keel"];
    let mut bridge = Scenario::start("test-ends", USER_DATA, |_| Ok(()));
    let_in(&mut bridge);
    prints(
        &mut bridge,
        "a start that the boot asked for is one that others can wait for",
        "systemctl start sail.service && cat /var/order",
        &up,
    );
    bridge.need(
        "Ctrl-Alt-Del restarts it, and /var was unmounted",
        |guest| {
            let from = guest.log.text().len();
            guest.press_ctrl_alt_del()?;
            comes_back(guest, from, "rebooting: asked by a signal")?;
            ensure!(was_unmounted(guest, from)?, "it was not");
            Ok(())
        },
    );
    prints(
        &mut bridge,
        "units were stopped in the reverse order of their start",
        "systemctl start sail.service && cat /var/order",
        &[up, down, up].concat(),
    );
    bridge.check(
        "a fault of PID 1 is a line in the log, and another execution that goes on",
        |guest| {
            let from = guest.log.text().len();
            guest.ssh()?.output(&as_root(FAULT))?;
            guest.wait_for_console("crash: PID 1 got SIGILL", from, BOOT_PATIENCE)?;
            guest
                .wait_for_console("PID 1 goes on with", from, BOOT_PATIENCE)
                .map(|_| ())
        },
    );
    bridge.check("SIGPWR switches it off", |guest| {
        guest.ssh()?.output("sudo kill -PWR 1")?;
        guest.wait_for_end()
    });

    bridge
        .machine
        .command_line
        .push_str(" orlop.crash orlop.rescue");
    bridge.switch_on();
    bridge.need("/var was unmounted", |guest| {
        ensure!(was_unmounted(guest, 0)?, "it was not");
        Ok(())
    });
    bridge.check("a panic of PID 1 is a line with its place", |guest| {
        let line = guest.wait_for_console("panic: ", 0, BOOT_PATIENCE)?;
        ensure!(
            line.contains("orlop.crash") && line.contains("pid1.rs"),
            "{line}"
        );
        Ok(())
    });
    bridge.check(
        "a shell on the console comes first where the command line asks for it",
        |guest| {
            guest.wait_for_console("a shell on the console", 0, BOOT_PATIENCE)?;
            let from = guest.log.text().len();
            let mut shell = guest.shell()?;
            let said = shell.run("echo $$ $PPID", std::time::Instant::now() + BOOT_PATIENCE)?;
            let parent = said.split_whitespace().nth(1).context("no parent")?;
            ensure!(parent == "1", "{said}");
            shell.leave()?;
            guest.wait_for_console("rebooting in 10 s", from, BOOT_PATIENCE)?;
            guest
                .wait_for_console("Linux version", from, BOOT_PATIENCE)
                .map(|_| ())
        },
    );
    bridge.cut_power();
    bridge.finish();
}

/// Writes an instruction that the processor refuses to where PID 1 goes on when its wait for events ends.
/// The connection that carries this is closed before: PID 1 would never do it.
const FAULT: &str = "\
strike() {
    set -- $(cat /proc/1/syscall); eval \"address=\\${$#}\"
    sync
    printf '\\017\\013' | dd of=/proc/1/mem bs=1 seek=$((address)) conv=notrunc
}
(sleep 1; strike) </dev/null >/dev/null 2>&1 &";
