//! What confines and limits a unit's processes: a unit for each directive, and what its process finds.

use std::fmt::Write as _;

use orlop_tests::Scenario;

/// What the scripts begin with. `try` says whether a command succeeds; `flag` shows the first option of what is mounted at a path.
const PRELUDE: &str = "\
try() { \"$@\" >/dev/null 2>&1 && echo yes || echo no; }
field() { sed -n \"s/^$1:[[:space:]]*//p\" /proc/self/status; }
own() { cat /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/$1; }
same() { [ \"$(readlink /proc/self/ns/$1)\" = \"$(readlink /proc/1/ns/$1)\" ] && echo same || echo other; }
";

/// A unit: what is in its `[Service]` beside a script as `ExecStart=`, the script, and the lines that it prints.
struct Row {
    directives: &'static str,
    script: &'static str,
    prints: &'static str,
}

const fn row(directives: &'static str, script: &'static str, prints: &'static str) -> Row {
    Row {
        directives,
        script,
        prints,
    }
}

/// Files.
#[rustfmt::skip]
const FILES: &[Row] = &[
    row("", "try touch /etc/free /var/free; same mnt; field Seccomp; field NoNewPrivs", "yes\nsame\n0\n0"),
    row("ProtectSystem=yes", "try touch /etc/x; grep -c ' /usr ro,' /proc/self/mountinfo", "yes\n1"),
    row("ProtectSystem=full", "try touch /etc/x; try touch /var/x", "no\nyes"),
    row("ProtectSystem=strict", "try touch /etc/x; try touch /var/x; try touch /run/x; try touch /tmp/x; try touch /dev/shm/x; try touch /home/x", "no\nno\nno\nno\nyes\nyes"),
    row("ProtectSystem=strict\nReadWritePaths=/var/open -/gone\nStateDirectory=kept", "try touch /var/open/x; try touch /var/lib/kept/x; echo $STATE_DIRECTORY; try touch /var/lib/x", "yes\nyes\n/var/lib/kept\nno"),
    row("ProtectHome=yes", "try ls /home/core; stat -c %a /home/.; ls -A /root/", "no\n0"),
    row("ProtectHome=read-only", "try ls /home/core; try touch /home/core/x", "yes\nno"),
    row("ProtectHome=tmpfs", "ls /home/; try touch /home/x", "no"),
    row("PrivateTmp=yes\nExecStartPre=/bin/sh -c 'echo secret >/tmp/shared; echo more >/var/tmp/shared'", "cat /tmp/shared /var/tmp/shared; stat -c %a /tmp; ls /tmp/", "secret\nmore\n1777\nshared"),
    row("PrivateTmp=yes", "ls -A /tmp/", ""),
    row("PrivateDevices=yes", "ls /dev | grep -E -c 'vda|kmsg|console'; echo x >/dev/null && head -c 1 /dev/zero | wc -c; try mknod /dev/shm/x c 1 3; ls -d /dev/pts /dev/shm", "0\n1\nno\n/dev/pts\n/dev/shm"),
    row("ReadOnlyPaths=/var/open", "try cat /var/open/file; try touch /var/open/file; try touch /var/x", "yes\nno\nyes"),
    row("ReadOnlyPaths=/var\nReadWritePaths=/var/open", "try touch /var/x; try touch /var/open/x", "no\nyes"),
    row("InaccessiblePaths=/var/open -/gone\nInaccessiblePaths=/etc/machine-id\nUser=core", "try ls /var/open; try cat /etc/machine-id; try cat /etc/passwd", "no\nno\nyes"),
    row("BindPaths=/var/open:/mnt", "cat /mnt/file; try touch /mnt/bound; ls /var/open/bound", "here\nyes\n/var/open/bound"),
    row("BindReadOnlyPaths=/var/open:/mnt", "cat /mnt/file; try touch /mnt/x", "here\nno"),
    row("TemporaryFileSystem=/var:size=1m,mode=0700\nBindReadOnlyPaths=/var/open", "ls /var; try touch /var/x; try touch /var/open/x; stat -c %a /var", "open\nyes\nno\n700"),
    row("NoExecPaths=/var\nExecPaths=/var/open", "cp /bin/busybox /var/tool; cp /bin/busybox /var/open/busybox; try /var/tool true; try /var/open/busybox true", "no\nyes"),
    row("PrivateMounts=yes", "same mnt; mount -t tmpfs none /mnt && try touch /mnt/x; grep -c ' /mnt ' /proc/1/mountinfo; true", "other\nyes\n0"),
    row("MountFlags=slave", "same mnt; mount -t tmpfs none /mnt && grep -c ' /mnt ' /proc/1/mountinfo; true", "other\n0"),
    row("ProtectKernelTunables=yes", "try sh -c 'echo 1 >/proc/sys/kernel/panic'; try head -c 1 /proc/kcore; try sh -c 'echo x >/sys/power/state'; cat /proc/sys/kernel/ostype", "no\nno\nno\nLinux"),
    row("ProtectKernelModules=yes", "try ls /usr/lib/modules/; stat -c %a /lib/modules/.; try modprobe dummy", "yes\n0\nno"),
    row("ProtectKernelLogs=yes", "try dmesg; try head -c 1 /dev/kmsg", "no\nno"),
    row("ProtectControlGroups=yes", "try mkdir /sys/fs/cgroup/system.slice/mine", "no"),
    row("ProtectProc=invisible\nUser=core", "try ls -d /proc/1; try ls -d /proc/self/", "no\nyes"),
    row("ProcSubset=pid", "try ls -d /proc/self/; try ls -d /proc/sys", "yes\nno"),
    row("DevicePolicy=closed\nDeviceAllow=/dev/kmsg r", "try head -c 1 /dev/zero; try head -c 1 /dev/vda; try dd if=/dev/kmsg of=/dev/null bs=8k count=1; try sh -c 'echo x >/dev/kmsg'", "yes\nno\nyes\nno"),
    row("UMask=0027", "umask", "0027"),
    row("DynamicUser=yes\nStateDirectory=drifting", "[ $(id -u) -ge 61184 ] && [ $(id -u) -le 65519 ] && echo dynamic; try touch /var/lib/drifting/x; try touch /var/x; try touch /tmp/x; field NoNewPrivs; echo $USER", "dynamic\nyes\nno\nyes\n1\nrow-28"),
    row("RootDirectory=/var/open/root\nExecStartPre=+/bin/mkdir -p /var/open/root\nBindReadOnlyPaths=/usr /bin /lib /lib64 /etc", "ls /; ls -A /run; try touch /mine; try touch /usr/mine; ls -d /proc/self/.; same mnt", "bin\ndev\netc\nlib\nlib64\nproc\nrun\nsys\nusr\nyes\nno\n/proc/self/.\nother"),
    row("RootDirectory=/var/open/root\nMountAPIVFS=no\nBindPaths=/dev\nBindReadOnlyPaths=/usr /bin /lib /lib64 /etc\nReadOnlyPaths=/var/open/root +/etc /var\nStateDirectory=rooted", "ls /proc/ | wc -l; try touch /mine; echo $STATE_DIRECTORY; try touch /var/lib/rooted/x", "0\nno\n/var/lib/rooted\nyes"),
    row("RootDirectory=/var/open/bare\nExecStartPre=+/bin/mkdir -p /var/open/bare\nExecStartPre=+/bin/sh -c \"echo kept >/etc/rooted/key\"\nBindReadOnlyPaths=/usr /bin /lib /lib64 /etc/rows\nConfigurationDirectory=rooted", "cat $CONFIGURATION_DIRECTORY/key; ls /etc", "kept\nrooted\nrows"),
    row("RootDirectory=/var/open/root\nProtectSystem=strict\nBindReadOnlyPaths=/usr /bin /lib /lib64 /etc\nStateDirectory=rooted\nInaccessiblePaths=+/mine", "try touch /other; cat /mine 2>&1 | sed 's/.*: //'; try touch /var/lib/rooted/x", "no\nPermission denied\nyes"),
];

/// Privileges and system calls.
#[rustfmt::skip]
const CALLS: &[Row] = &[
    row("NoNewPrivileges=yes", "field NoNewPrivs; field Seccomp", "1\n0"),
    row("CapabilityBoundingSet=CAP_NET_BIND_SERVICE CAP_KILL", "field CapBnd; field CapEff", "0000000000000420\n0000000000000420"),
    row("CapabilityBoundingSet=~CAP_SYS_ADMIN", "try mount -t tmpfs none /mnt; field CapBnd", "no\n000001ffffdfffff"),
    row("User=core\nAmbientCapabilities=CAP_NET_BIND_SERVICE", "id -un; field CapEff; field CapAmb; field CapPrm", "core\n0000000000000400\n0000000000000400\n0000000000000400"),
    row("SystemCallFilter=~mkdir mkdirat\nSystemCallErrorNumber=ENOTTY", "mkdir /var/x 2>&1 | sed 's/.*: //'; field Seccomp", "Inappropriate ioctl for device\n2"),
    row("SystemCallFilter=~@clock:EPERM mkdir:EACCES mkdirat:EACCES", "mkdir /var/x 2>&1 | sed 's/.*: //'; date -s 2030-01-01 2>&1 | grep -o \"can't set.*\"", "Permission denied\ncan't set date: Operation not permitted"),
    row("SystemCallFilter=~mkdir mkdirat", "mkdir /var/x; echo $?", "Bad system call\n159"),
    row("SystemCallFilter=@system-service\nUser=core", "id -un; try cat /etc/passwd; mount -t tmpfs x /mnt; echo $?; field NoNewPrivs", "core\nyes\nBad system call\n159\n1"),
    row("SystemCallArchitectures=native", "field Seccomp; try cat /etc/passwd", "2\nyes"),
    row("RestrictNamespaces=yes", "try unshare -n true; try unshare -u true", "no\nno"),
    row("RestrictNamespaces=net", "try unshare -n true; try unshare -u true", "yes\nno"),
    row("RestrictAddressFamilies=AF_UNIX", "try ping -c 1 127.0.0.1; nc 127.0.0.1 22 2>&1 </dev/null | sed 's/.*: //'", "no\nAddress family not supported by protocol"),
    row("RestrictSUIDSGID=yes", "touch /var/mode; try chmod u+s /var/mode; try chmod 0755 /var/mode", "no\nyes"),
    row("RestrictRealtime=yes", "field Seccomp", "2"),
    row("LockPersonality=yes", "try setarch i386 true; try true", "no\nyes"),
    row("MemoryDenyWriteExecute=yes", "field Seccomp; field Seccomp_filters; try cat /etc/passwd", "2\n1\nyes"),
    row("ProtectClock=yes", "date -s 2030-01-01 2>&1 | grep -o \"can't set.*\"; field CapBnd", "can't set date: Operation not permitted\n000001f7fdffffff"),
    row("ProtectHostname=yes", "try hostname other; same uts", "no\nother"),
    row("PrivateNetwork=yes\nExecStartPre=/bin/sh -c 'readlink /proc/self/ns/net >/run/first'", "sed 1,2d /proc/net/dev | cut -d: -f1 | tr -d ' '; same net; [ $(readlink /proc/self/ns/net) = $(cat /run/first) ] && echo shared; try ping -c 1 127.0.0.1", "lo\nother\nshared\nyes"),
    row("NetworkNamespacePath=/proc/1/ns/net", "same net", "same"),
    row("PrivateIPC=yes", "same ipc", "other"),
    row("NoNewPrivileges=yes\nProtectSystem=strict\nExecStartPre=+/bin/sh -c 'touch /var/plus; grep NoNewPrivs /proc/self/status >/run/plus'", "cat /run/plus; ls /var/plus", "NoNewPrivs:\t0\n/var/plus"),
    row("User=core\nPrivateTmp=yes\nWorkingDirectory=~\nSupplementaryGroups=daemon", "id -un; pwd; id -Gn | tr ' ' '\\n' | grep -E '^(daemon|wheel)$' | sort; echo $HOME", "core\n/var/home/core\ndaemon\nwheel\n/home/core"),
    row("PrivateUsers=yes\nUser=core\nExecStartPre=+/bin/sh -c 'touch /var/open/theirs; chown daemon /var/open/theirs'", "id -un; stat -c %u /var/open/theirs /etc/passwd; wc -l </proc/self/uid_map; field CapEff", "core\n65534\n0\n2\n0000000000000000"),
    row("PrivateUsers=yes", "field CapEff; wc -l </proc/self/uid_map; try mount -t tmpfs none /mnt; try hostname other; try touch /etc/mine", "000001ffffffffff\n1\nno\nno\nyes"),
    row("PrivateUsers=yes\nUser=core\nCapabilityBoundingSet=\nProtectSystem=strict\nRestrictNamespaces=yes\nSystemCallFilter=@system-service", "id -un; try touch /var/x; try unshare -U true; field CapBnd", "core\nno\nno\n0000000000000000"),
    row("RemoveIPC=yes\nUser=daemon", "echo left >/dev/shm/left; ls /dev/shm/left", "/dev/shm/left"),
];

/// Limits, schedulers and streams.
#[rustfmt::skip]
const LIMITS: &[Row] = &[
    row("LimitNOFILE=100:200\nLimitCORE=0\nLimitNPROC=50", "ulimit -n; ulimit -Hn; ulimit -c; ulimit -p", "100\n200\n0\n50"),
    row("LimitNOFILE=100:200\nProtectSystem=full", "ulimit -n; ulimit -Hn", "100\n200"),
    row("Nice=5\nOOMScoreAdjust=300", "cut -d' ' -f19 /proc/$$/stat; cat /proc/self/oom_score_adj", "5\n300"),
    row("IOSchedulingClass=idle", "ionice -p $$", "idle"),
    row("IOSchedulingClass=best-effort\nIOSchedulingPriority=2", "ionice -p $$", "best-effort: prio 2"),
    row("CPUSchedulingPolicy=batch", "cut -d' ' -f41 /proc/$$/stat", "3"),
    row("CPUSchedulingPolicy=fifo\nCPUSchedulingPriority=7", "cut -d' ' -f40,41 /proc/$$/stat", "7 1"),
    row("CPUAffinity=0", "field Cpus_allowed_list", "0"),
    row("TimerSlackNSec=1ms", "cat /proc/$$/timerslack_ns", "1000000"),
    row("MemoryMax=64M\nMemoryHigh=32M\nMemoryLow=8M\nMemoryMin=4M\nTasksMax=20", "own memory.max; own memory.high; own memory.low; own memory.min; own pids.max", "67108864\n33554432\n8388608\n4194304\n20"),
    row("CPUWeight=50\nCPUQuota=20%", "own cpu.weight; own cpu.max", "50\n20000 100000"),
    row("IOWeight=200", "own io.weight", "default 200"),
    row("StandardInput=file:/var/open/file", "cat", "here"),
    row("StandardInput=data\nStandardInputText=told beforehand", "cat", "told beforehand"),
    row("StandardInput=null\nStandardOutput=append:/var/rows/%p\nExecStartPre=/bin/echo before", "echo after; readlink /proc/self/fd/0", "before\nafter\n/dev/null"),
    row("StandardError=file:/var/open/error", "echo gone >&2; cat /var/open/error", "gone"),
    row("RuntimeDirectory=row/deep\nRuntimeDirectoryMode=0750\nCacheDirectory=row\nLogsDirectory=row\nConfigurationDirectory=row\nUser=core", "echo $RUNTIME_DIRECTORY $CACHE_DIRECTORY $LOGS_DIRECTORY $CONFIGURATION_DIRECTORY; stat -c '%a %U' /run/row/deep /var/cache/row /etc/row", "/run/row/deep /var/cache/row /var/log/row /etc/row\n750 core\n755 core\n755 root"),
    row("LoadCredential=word:/var/open/file\nLoadCredential=all:/var/open/keys\nLoadCredential=absent\nSetCredential=word:default\nSetCredential=other:told\nUser=core", "cd $CREDENTIALS_DIRECTORY; cat other; echo; cat word all_inner_key; ls -A; stat -c '%a %U' . word; try touch x; pwd", "told\nhere\ninner\nall_inner_key\nother\nword\n500 core\n400 core\nno\n/run/credentials/limits-17.service"),
    row("LoadCredential=word:/gone\nSetCredential=word:in its place\nProtectSystem=strict\nEnvironment=WHERE=%d\nExecStartPre=+/bin/sh -c 'cat ${CREDENTIALS_DIRECTORY}/word'", "cat $CREDENTIALS_DIRECTORY/word; stat -c %a $WHERE/word", "in its place400"),
    row("StandardInput=fd:words\n[Unit]\nRequires=limits-19.socket\nAfter=limits-19.socket", "echo piped >/run/words; head -n 1", "piped"),
];

const TABLES: [(&str, &[Row]); 3] = [("row", FILES), ("calls", CALLS), ("limits", LIMITS)];

/// Units that do not start, and what is said of them.
#[rustfmt::skip]
const REFUSED: &[(&str, &str, &[&str])] = &[
    ("missing", "ReadOnlyPaths=/gone", &["there is no /gone", "226/NAMESPACE"]),
    ("unbound", "BindPaths=/gone:/mnt", &["there is no /gone", "226/NAMESPACE"]),
    ("foreign", "SystemCallArchitectures=native x86\nLockPersonality=yes", &["SystemCallArchitectures= allows x86", "228/SECCOMP"]),
    ("nowhere", "PrivateTmp=yes\nWorkingDirectory=/gone", &["change to the directory /gone: No such file or directory", "200/CHDIR"]),
    ("nothing", "ProtectSystem=full\nExecStart=\nExecStart=/usr/bin/no-such-program", &["cannot execute /usr/bin/no-such-program: No such file or directory", "203/EXEC"]),
    ("netless", "NetworkNamespacePath=/run/gone", &["enter the network namespace /run/gone", "225/NETWORK"]),
    ("rootless", "RootDirectory=/gone", &["make /gone the root (RootDirectory=)", "226/NAMESPACE"]),
    ("imaged", "RootImage=/var/image", &["RootImage= is not supported"]),
    ("unlent", "LoadCredential=key:/gone", &["LoadCredential=key: read /gone", "243/CREDENTIALS"]),
    ("unnamed", "StandardInput=fd:none", &["StandardInput=fd:none: no socket of the unit has that name"]),
];

fn user_data() -> String {
    let mut text = "#cloud-config\nhostname: cage\nwrite_files:\n".to_owned();
    let mut file = |path: &str, content: &str| {
        let _ = write!(text, "  - path: {path}\n    content: |\n");
        for line in content.lines() {
            let _ = writeln!(text, "      {line}");
        }
    };
    file("/etc/rows/prelude.sh", PRELUDE);
    let fifo = "[Socket]\nListenFIFO=/run/words\nFileDescriptorName=words\n";
    file("/etc/systemd/system/limits-19.socket", fifo);
    for (table, rows) in TABLES {
        for (number, row) in rows.iter().enumerate() {
            let name = format!("{table}-{number}");
            file(
                &format!("/etc/rows/{name}.sh"),
                &format!(". /etc/rows/prelude.sh\n{}", row.script),
            );
            file(
                &format!("/etc/systemd/system/{name}.service"),
                &format!(
                    "[Service]\nType=oneshot\nStandardOutput=truncate:/var/rows/{name}\nStandardError=inherit\n\
                     ExecStart=/bin/sh /etc/rows/{name}.sh\n{}",
                    row.directives
                ),
            );
        }
    }
    for (name, directives, _) in REFUSED {
        file(
            &format!("/etc/systemd/system/{name}.service"),
            &format!("[Service]\nExecStart=/bin/sleep 1\n{directives}"),
        );
    }
    text
}

#[test]
fn a_unit_is_confined_as_each_of_its_directives_says() {
    let mut cage = Scenario::start("test-confinement", &user_data(), |_| Ok(()));
    cage.need("the machine comes up and lets its operator in", |guest| {
        guest.wait_for_ssh().map(|_| ())
    });
    for (table, rows) in TABLES {
        let mut said = String::new();
        cage.check(&format!("the units of the table {table} run"), |guest| {
            let script = format!(
                "sudo sh -c 'mkdir -p /var/rows /var/open/keys/inner; echo here >/var/open/file; echo inner >/var/open/keys/inner/key
                 for n in $(seq 0 {}); do echo \"== $n\"; systemctl start {table}-$n 2>&1; cat /var/rows/{table}-$n; done; true'",
                rows.len() - 1
            );
            said = guest.ssh()?.run(&script)?;
            Ok(())
        });
        for (number, row) in rows.iter().enumerate() {
            let from = format!("== {number}\n");
            let own = said.split_once(&from).map_or("", |(_, rest)| rest);
            let own = own.split("== ").next().unwrap_or_default();
            let sentence = format!("{table}-{number}: {}", row.directives.replace('\n', " "));
            cage.check(&sentence, |_| {
                anyhow::ensure!(
                    own.trim_end() == row.prints,
                    "`{}` printed:\n{own}",
                    row.script
                );
                Ok(())
            });
        }
    }
    for (name, directives, parts) in REFUSED {
        let sentence = format!("{} fails in words", directives.replace('\n', " "));
        let command = format!(
            "sudo systemctl start {name} 2>&1 && echo started; systemctl is-active {name}; systemctl status {name}; true"
        );
        cage.command_becomes(&sentence, &command, |text| {
            !text.contains("started") && parts.iter().all(|part| text.contains(part))
        });
    }
    cage.command(
        "nothing is left of what processes shared",
        "sudo sh -c 'sleep 1; ls -A /tmp/orlop-private /var/tmp/orlop-private; ls -A /run/orlop/namespaces; ls -A /run/credentials; ls -A /dev/shm | grep left; true'",
        |text| text.lines().all(|line| line.starts_with("/tmp/") || line.starts_with("/var/") || line.is_empty()),
    );
    cage.cut_power();
    cage.finish();
}
