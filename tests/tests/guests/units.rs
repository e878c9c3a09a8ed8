//! Every kind of unit, the ways in which services live and die, and a PID 1 that is replaced while all of it runs.

use std::time::{Duration, Instant};

use orlop_qemu::process;
use orlop_tests::Scenario;

const USER_DATA: &str = include_str!("units.yaml");

/// What scripts in the guest begin with: properties of units, and a wait of at most a minute for something to become true.
const PRELUDE: &str = "\
show() { systemctl show -P $2 $1; }
until_true() { n=600; until eval \"$1\"; do n=$((n - 1)); [ $n -gt 0 ] || { echo \"never: $1\"; return 1; }; sleep 0.1; done; }
ticks() { journalctl --no-pager -o cat -u lived.service | grep -c tick; }
say() { exec 3<>/dev/tcp/127.0.0.1/$1; shift; echo \"$@\" >&3; }
";

fn as_root(script: &str) -> String {
    format!("sudo bash -s 2>&1 <<'END'\n{PRELUDE}{script}\nexit 0\nEND")
}

/// Runs `script` as root; it prints just these lines.
fn prints(scenario: &mut Scenario, sentence: &str, script: &str, lines: &[&str]) {
    scenario.prints(sentence, &as_root(script), lines);
}

#[test]
fn units_of_every_kind_do_their_work() {
    let mut rigging = Scenario::start("test-kinds", USER_DATA, |_| Ok(()));
    rigging.need("the machine comes up and lets its operator in", |guest| {
        guest.wait_for_ssh().map(|_| ())
    });
    what_starts_others(&mut rigging);
    mounts_and_slices(&mut rigging);
    services_of_every_type(&mut rigging);
    memory_and_processes(&mut rigging);
    looking_is_no_loading(&mut rigging);
    another_pid_1_goes_on(&mut rigging);
    rigging.cut_power();
    rigging.finish();
}

fn what_starts_others(rigging: &mut Scenario) {
    prints(
        rigging,
        "a timer starts its unit again and again, in its time",
        "touch /run/beat; systemctl start beat.timer; show beat.timer SubState
         until_true '[ $(wc -l </run/beat) -ge 3 ]'
         awk 'NR > 1 { if ($1 - before < 1.9) early = 1 } { before = $1 } END { print early + 0 }' /run/beat
         day='[A-Z][a-z]{2} [0-9]{4}(-[0-9]{2}){2} ([0-9]{2}:){2}[0-9]{2} UTC'
         until_true 'systemctl list-timers --no-legend | grep -Eq \"^$day +[0-9].* left +$day +[0-9].* ago +beat.timer +beat.service$\"' && echo listed
         systemctl stop beat.timer; systemctl is-active beat.timer",
        &["waiting", "0", "listed", "inactive"],
    );
    prints(
        rigging,
        "a persistent timer catches up once what it missed while it was off",
        "systemctl start missed.timer
         until_true '[ -e /var/lib/orlop/timers/stamp-missed.timer ]'
         systemctl stop missed.timer; ls /run/missed 2>&1
         touch -d @1000000000 /var/lib/orlop/timers/stamp-missed.timer
         systemctl start missed.timer
         until_true '[ -e /run/missed ]'; sleep 1; cat /run/missed
         [ $(stat -c %Y /var/lib/orlop/timers/stamp-missed.timer) -gt 1000000000 ] && echo kept",
        &["ls: /run/missed: No such file or directory", "ran", "kept"],
    );
    prints(
        rigging,
        "a service is started by the first connection, and gets its sockets with their names",
        "systemctl start ask.socket; show ask.socket SubState; systemctl is-active ask.service
         stat -c '%A %F' /run/ask.sock
         say 7001 hello; until_true '[ -s /run/ask ]'; cat /run/ask
         systemctl is-active ask.service; show ask.socket SubState
         systemctl stop ask.socket ask.service; systemctl is-active ask.socket ask.service",
        &[
            "listening",
            "inactive",
            "srw------- socket",
            "2 ask:ask mine sockets",
            "active",
            "running",
            "inactive",
            "inactive",
        ],
    );
    prints(
        rigging,
        "each connection has an instance of its own, up to MaxConnections=, and leaves nothing behind",
        "before=$(systemctl list-units --all | wc -l)
         systemctl start echo.socket
         exec 4<>/dev/tcp/127.0.0.1/7002; echo one >&4; head -n 1 <&4
         exec 5<>/dev/tcp/127.0.0.1/7002; echo two >&5; head -n 1 <&5
         exec 6<>/dev/tcp/127.0.0.1/7002; cat <&6 | wc -c
         systemctl list-units | grep -c '^echo@.*running\\|^echo@.*active'
         echo bye >&4; echo bye >&5; exec 4>&- 5>&-
         until_true '! systemctl list-units --all | grep -q ^echo@' && echo gone
         systemctl stop echo.socket",
        &["127.0.0.1 said one", "127.0.0.1 said two", "0", "2", "gone"],
    );
    prints(
        rigging,
        "a path unit starts its service for what appears and for what changes",
        "systemctl start letters.path mirror.path; show letters.path SubState
         echo dear >/run/.one; mv /run/.one /run/letters/one; until_true '[ ! -e /run/letters/one ]'; cat /run/read
         until_true '[ \"$(show letters.path SubState)\" = waiting ]'; touch /run/letters/two; until_true '[ ! -e /run/letters/two ]'
         echo first >/run/.o; mv /run/.o /run/original; until_true 'grep -qs first /run/copies'
         until_true '[ \"$(show mirror.path SubState)\" = waiting ]'
         echo second >/run/.o; mv /run/.o /run/original; until_true 'grep -q second /run/copies' && echo mirrored
         systemctl stop letters.path mirror.path",
        &["waiting", "dear", "mirrored"],
    );
}

fn mounts_and_slices(rigging: &mut Scenario) {
    prints(
        rigging,
        "a service has the mount and the slice that it needs, and their limits",
        "systemctl start inside.service; until_true '[ -s /run/inside ]'; cat /run/inside; show run-hold.mount SubState
         cat /sys/fs/cgroup/deck.slice/deck-upper.slice/pids.max /sys/fs/cgroup/deck.slice/deck-upper.slice/memory.max
         until_true '[ $(wc -l </sys/fs/cgroup/deck.slice/deck-upper.slice/inside.service/cgroup.procs) = 1 ]'
         systemctl stop run-hold.mount; systemctl is-active inside.service run-hold.mount; grep -c ' /run/hold ' /proc/mounts",
        &["1", "mounted", "20", "67108864", "inactive", "inactive", "0"],
    );
    prints(
        rigging,
        "a mount that is in use stays, and the one who asked is told; one that others take away is down",
        "systemctl start run-hold.mount; cd /run/hold; systemctl stop run-hold.mount >/dev/null 2>&1; echo $?
         systemctl is-active run-hold.mount; cd /; umount /run/hold
         until_true '[ \"$(systemctl is-active run-hold.mount)\" = inactive ]' && echo noticed",
        &["1", "active", "noticed"],
    );
}

fn services_of_every_type(rigging: &mut Scenario) {
    prints(
        rigging,
        "the main process of a daemon is that of its PID file, or its only one",
        "systemctl start daemon.service; [ $(show daemon.service MainPID) = $(cat /run/daemon.pid) ] && echo known
         old=$(cat /run/daemon.pid); rm /run/daemon.pid; kill -9 $old
         until_true '[ -s /run/daemon.pid ] && [ \"$(show daemon.service MainPID)\" = \"$(cat /run/daemon.pid)\" ]' && echo again
         systemctl stop daemon.service; ps | grep -c '[s]leep 77777'
         systemctl start lone.service; main=$(show lone.service MainPID)
         until_true 'tr \\\\0 \" \" </proc/$main/cmdline | grep \"^sleep 66666 \"'
         systemctl stop lone.service; systemctl is-active lone.service",
        &["known", "again", "0", "sleep 66666 ", "inactive"],
    );
    prints(
        rigging,
        "a service that gives no sign of life is ended by its watchdog",
        "systemctl start bitten.service && echo ready
         until_true '[ \"$(systemctl is-active bitten.service)\" = failed ]'; show bitten.service Result",
        &["ready", "watchdog"],
    );
    prints(
        rigging,
        "delays before restarts grow as RestartSteps= says",
        "systemctl start slow.service; until_true '[ $(show slow.service NRestarts) -ge 4 ]'
         until_true 'journalctl --no-pager -o cat -u slow.service | grep -q \"restart 4 in\"'
         journalctl --no-pager -o cat -u slow.service | grep -o 'restart [14] in [0-9]*ms'; systemctl stop slow.service",
        &[
            "restart 1 in 100ms",
            "restart 4 in 800ms",
        ],
    );
    prints(
        rigging,
        "Type=idle lets other jobs go first",
        "systemctl --no-block start busy.service; systemctl start idler.service
         until_true '[ -e /run/idler ]'; cat /run/idler",
        &["busy was first"],
    );
    prints(
        rigging,
        "what is upheld comes back, and OnSuccess= follows a good end",
        "systemctl start holder.service; until_true '[ \"$(systemctl is-active upheld.service)\" = active ]'
         old=$(show upheld.service MainPID); kill -TERM $old
         until_true 'new=$(show upheld.service MainPID); [ -n \"$new\" ] && [ \"$new\" != $old ] && [ \"$new\" != 0 ]' && echo upheld
         systemctl stop holder.service upheld.service; until_true '[ -e /run/after ]'; cat /run/after",
        &["upheld", "after"],
    );
}

fn memory_and_processes(rigging: &mut Scenario) {
    prints(
        rigging,
        "a process that the kernel kills for memory ends its unit, and is told as such",
        "systemctl start glutton.service
         until_true '[ \"$(systemctl is-active glutton.service)\" = failed ]'; show glutton.service Result",
        &["oom-kill"],
    );
    prints(
        rigging,
        "a fork bomb in a unit with TasksMax= leaves the rest responsive, and is stopped",
        "systemctl start bomb.service
         until_true '[ $(cat /sys/fs/cgroup/system.slice/bomb.service/pids.current) -ge 29 ]'
         systemctl start upheld.service; systemctl is-active upheld.service; systemctl stop upheld.service
         systemctl stop bomb.service; systemctl is-active bomb.service; ls -d /sys/fs/cgroup/system.slice/bomb.service 2>/dev/null",
        &["active", "inactive"],
    );
}

fn looking_is_no_loading(rigging: &mut Scenario) {
    prints(
        rigging,
        "whoever looks at units does not make PID 1 keep them",
        "before=$(systemctl list-units --all | wc -l)
         for i in $(seq 30); do systemctl status echo@$i.service none$i.service >/dev/null 2>&1; done
         systemctl is-active echo@1.service; systemctl status none.service >/dev/null 2>&1; echo $?
         [ $(systemctl list-units --all | wc -l) = $before ] && echo same",
        &["inactive", "4", "same"],
    );
}

/// Many units, and many restarts; by hand and in `make torture`.
#[test]
#[ignore = "slow; make torture runs it"]
fn torture_a_thousand_units_and_ten_thousand_restarts() {
    let mut rigging = Scenario::start("test-many", USER_DATA, |machine| {
        machine.memory_mib = 1024;
        Ok(())
    });
    rigging.need("the machine comes up and lets its operator in", |guest| {
        guest.wait_for_ssh().map(|_| ())
    });
    rigging.command(
        "a thousand units start, and PID 1 stays small",
        &as_root(
            "printf '[Service]\\nExecStart=/bin/sleep 1000000\\n' >/run/systemd/system/many@.service
             descriptors=$(ls /proc/1/fd | wc -l); from=$(cut -d. -f1 /proc/uptime)
             systemctl --no-block start many@{1..1000}.service
             until_true '[ $(cat /sys/fs/cgroup/system.slice/many@*/cgroup.procs 2>/dev/null | wc -l) = 1000 ]' && echo up
             until_true '[ $(systemctl list-units | grep -c \"^many@.*active\") = 1000 ]' && echo known
             awk '/^Rss:/ { print ($2 < 24576) ? \"small\" : $2 }' /proc/1/smaps_rollup
             systemctl --no-block stop many@{1..1000}.service
             until_true '[ $(ls -d /sys/fs/cgroup/system.slice/many@* 2>/dev/null | wc -l) = 0 ]' && echo down
             until_true '[ $(ls /proc/1/fd | wc -l) -le $((descriptors + 2)) ]' && echo closed
             echo \"in $(($(cut -d. -f1 /proc/uptime) - from)) s\" >&2",
        ),
        |text| {
            let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("in ")).collect();
            lines == ["up", "known", "small", "down", "closed"]
        },
    );
    rigging.command(
        "ten services that end at once are started",
        &as_root(
            "printf '[Unit]\\nStartLimitIntervalSec=0\\n[Service]\\nExecStart=/bin/false\\nRestart=always\\nRestartSec=0\\nStandardOutput=null\\n' >/run/systemd/system/flap@.service
             systemctl daemon-reload; ls /proc/1/fd | wc -l >/run/descriptors; ls -d /proc/[0-9]* 2>/dev/null | wc -l >/run/processes
             systemctl --no-block start flap@{1..10}.service",
        ),
        |text| text.is_empty(),
    );
    rigging.check("they are restarted ten thousand times", |guest| {
        let ssh = guest.ssh()?;
        let patience = Instant::now() + Duration::from_secs(1800);
        process::poll("the restarts", patience, || {
            guest.alive()?;
            let text = ssh.run("systemctl show -P NRestarts flap@{1..10}.service")?;
            let total: u64 = text.lines().filter_map(|n| n.parse::<u64>().ok()).sum();
            Ok((total >= 10_000).then_some(()))
        })
    });
    rigging.command(
        "no process is lost, and no descriptor leaks",
        &as_root(
            "systemctl stop flap@{1..10}.service
             until_true '[ $(ls /proc/1/fd | wc -l) -le $(($(cat /run/descriptors) + 2)) ]' && echo closed
             until_true '[ $(ls -d /proc/[0-9]* 2>/dev/null | wc -l) -le $(($(cat /run/processes) + 2)) ]' && echo reaped
             ls -d /sys/fs/cgroup/system.slice/flap@* 2>/dev/null | wc -l",
        ),
        |text| text.lines().eq(["closed", "reaped", "0"]),
    );
    rigging.cut_power();
    rigging.finish();
}

/// What is up before PID 1 is replaced, and is to be up after it as if nothing had happened.
const BEFORE: &str = "\
systemctl start lived.service holder.service inside.service ask.socket beat.timer keep.service
old=\"$(show lived.service MainPID) $(show holder.service MainPID) $(show inside.service MainPID)\"
rm -f /run/ask; : >/run/beat; descriptors=$(ls /proc/1/fd | wc -l)
";

const AFTER: &str = "\
[ \"$(show lived.service MainPID) $(show holder.service MainPID) $(show inside.service MainPID)\" = \"$old\" ] && echo same processes
systemctl is-active lived.service inside.service run-hold.mount ask.socket ask.service | xargs
say 7001 hello; until_true '[ -s /run/ask ]'; cut -d' ' -f1-3 /run/ask
until_true '[ $(wc -l </run/beat) -ge 2 ]' && echo beats
kill -9 $(show lived.service MainPID); until_true '[ \"$(systemctl is-active lived.service)\" = active ]' && echo restarted
rows=$(ticks); until_true '[ $(ticks) -gt $rows ]' && echo heard
systemctl restart keep.service; until_true 'grep -qs kept /run/kept'; cat /run/kept
now=$(ls /proc/1/fd | wc -l); [ $((now - descriptors)) -lt 6 ] || echo \"$descriptors descriptors became $now\"
systemctl stop lived.service holder.service inside.service ask.socket ask.service beat.timer
systemctl is-active lived.service inside.service run-hold.mount ask.socket | xargs; systemctl stop run-hold.mount
";

fn another_pid_1_goes_on(rigging: &mut Scenario) {
    let lines = &[
        "same processes",
        "active active active active inactive",
        "2 ask:ask mine",
        "beats",
        "restarted",
        "heard",
        "1 kept",
        "inactive inactive active inactive",
    ];
    prints(
        rigging,
        "daemon-reexec keeps every service, descriptor and timer",
        &format!(
            "{BEFORE}systemctl daemon-reexec; until_true 'dmesg | grep -q \"PID 1 goes on\"'\n{AFTER}"
        ),
        lines,
    );
    prints(
        rigging,
        "a crash of PID 1 is told, and everything goes on",
        &format!(
            "{BEFORE}{FAULT}\nstrike 2>/dev/null; until_true 'dmesg | grep -q \"crash: PID 1 got SIGILL\"'\n{AFTER}"
        ),
        lines,
    );
}

/// Writes an instruction that the processor refuses to where PID 1 goes on when its wait for events ends. One that does not
/// wait (232, epoll_wait) is left alone until it does.
const FAULT: &str = "\
strike() {
    until_true 'grep -q \"^232 \" /proc/1/syscall'
    set -- $(cat /proc/1/syscall); eval \"address=\\${$#}\"
    printf '\\017\\013' | dd of=/proc/1/mem bs=1 seek=$((address)) conv=notrunc
    kill -CHLD 1
}";
