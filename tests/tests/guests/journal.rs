//! The journal of a machine: what it holds, what it survives, and where it goes.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use orlop_qemu::guest::Network;
use orlop_qemu::process;
use orlop_tests::Scenario;

/// The ports of the host stand for `SYSLOG` and `LOKI`.
const USER_DATA: &str = "#cloud-config
hostname: logbook
data:
  disk: serial=orlop-data
journal:
  max_size_mib: 32
  forward:
    - to: tcp://10.0.2.2:SYSLOG
    - to: http://10.0.2.2:LOKI
      priority: err
coreos:
  units:
    - name: tagged.service
      command: start
      content: |
        [Service]
        Type=oneshot
        SyslogLevel=notice
        ExecStart=/bin/sh -c 'echo plain words; echo \"<3>bad words\"'
    - name: loud.service
      command: start
      content: |
        [Service]
        Type=oneshot
        LogRateLimitIntervalSec=15s
        LogRateLimitBurst=20
        ExecStart=/bin/sh -c 'for i in $(seq 100); do echo word $i; done'
    - name: count.service
      content: |
        [Service]
        ExecStart=/bin/sh -c 'i=0; while :; do i=$((i + 1)); echo count $i; sleep 0.02; done'
    - name: last.service
      content: |
        [Service]
        Type=oneshot
        ExecStart=/bin/echo written a while before the end
";

type Heard = Arc<Mutex<Vec<u8>>>;

/// Listens on a port of the host, which the guest reaches at 10.0.2.2, and keeps what it hears. With `answers`, each
/// connection is a request that gets the next of them, the last one again and again.
fn listen(answers: &'static [&'static str]) -> (u16, Heard) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = listener.local_addr().expect("an address").port();
    let heard = Heard::default();
    let kept = Arc::clone(&heard);
    std::thread::spawn(move || {
        for (index, stream) in listener.incoming().enumerate() {
            let Ok(mut stream) = stream else { return };
            let kept = Arc::clone(&kept);
            let answer = answers.get(index.min(answers.len().saturating_sub(1)));
            std::thread::spawn(move || {
                let mut bytes = [0; 4096];
                let mut request = Vec::new();
                while let Ok(count @ 1..) = stream.read(&mut bytes) {
                    kept.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .extend_from_slice(&bytes[..count]);
                    request.extend_from_slice(&bytes[..count]);
                    // A batch's JSON ends so, and nothing in a line does: its quotes are escaped.
                    if let Some(answer) = answer
                        && request.ends_with(b"]}]}")
                    {
                        let _ = write!(stream, "HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n");
                        return;
                    }
                }
            });
        }
    });
    (port, heard)
}

fn hears(scenario: &mut Scenario, sentence: &str, heard: &Heard, parts: &[&str]) {
    scenario.check(sentence, |guest| {
        let text = || {
            let bytes = heard.lock().unwrap_or_else(PoisonError::into_inner);
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let deadline = Instant::now() + Duration::from_secs(90);
        process::poll(sentence, deadline, || {
            guest.alive()?;
            let text = text();
            Ok(parts.iter().all(|part| text.contains(part)).then_some(()))
        })
        .with_context(|| format!("heard:\n{}", text()))
    });
}

#[test]
fn the_journal_holds_what_was_said_whatever_happens() {
    let (syslog_port, syslog) = listen(&[]);
    let (loki_port, loki) = listen(&["503 Service Unavailable", "204 No Content"]);
    let user_data = USER_DATA
        .replace("SYSLOG", &syslog_port.to_string())
        .replace("LOKI", &loki_port.to_string());
    let mut logbook = Scenario::start("test-journal", &user_data, |machine| {
        // The ports of the host are reached through it.
        machine.network = Network::Open;
        Ok(())
    });
    logbook.need("the machine comes up and lets its operator in", |guest| {
        guest.wait_for_ssh().map(|_| ())
    });
    logbook.command(
        "an entry has its priority, unit, process, machine, boot, invocation and both times",
        "journalctl -u tagged -o json | grep words",
        |text| {
            let entries: Vec<serde_json::Value> = text
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok())
                .collect();
            let priorities: Vec<&str> = entries
                .iter()
                .filter_map(|e| e["PRIORITY"].as_str())
                .collect();
            let ids = ["_MACHINE_ID", "_BOOT_ID", "_SYSTEMD_INVOCATION_ID"];
            let times = ["__REALTIME_TIMESTAMP", "__MONOTONIC_TIMESTAMP"];
            priorities == ["5", "3"]
                && entries.iter().all(|entry| {
                    entry["_SYSTEMD_UNIT"] == "tagged.service"
                        && entry["_PID"]
                            .as_str()
                            .is_some_and(|pid| pid.parse::<u32>().is_ok_and(|pid| pid > 1))
                        && ids
                            .iter()
                            .all(|key| entry[*key].as_str().is_some_and(|id| id.len() == 32))
                        && times
                            .iter()
                            .all(|key| entry[*key].as_str().is_some_and(|time| time != "0"))
                })
        },
    );
    logbook.command(
        "the kernel's first line and the boot stage are in it",
        "journalctl -k -o cat | head -n 1; journalctl -b -o short-monotonic --no-hostname | grep 'orlop\\[1\\]' | head -n 1",
        |text| text.starts_with("Linux version") && text.lines().count() == 2,
    );
    logbook.command_becomes(
        "what a unit logs above its limit is counted, and told under its name",
        "journalctl -u loud -o cat --no-pager",
        |text| {
            let words = text
                .lines()
                .filter(|line| line.starts_with("word "))
                .count();
            words == 20 && text.contains("Suppressed 80 messages from loud.service")
        },
    );
    logbook.command(
        "a journal that is killed loses nothing but what it was reading",
        "sudo sh -s 2>&1 <<'END'
reaches() { n=300; until [ $(journalctl -u count -o cat | grep -c '^count ') -ge $1 ]; do n=$((n - 1)); [ $n -gt 0 ] || exit 1; sleep 0.2; done; }
systemctl start count.service; reaches 30
pid=$(systemctl show -P MainPID orlop-journal.service)
kill -9 $pid; reaches 80
systemctl stop count.service
journalctl -u count -o cat | awk '/^count / { if ($2 > last + 5) print \"gap\", last, $2; last = $2; n++ } END { print (n >= 80) }'
END",
        |text| text == "1\n",
    );
    logbook.command(
        "`boot-times --svg` is a chart of the boot",
        "orlop boot-times --svg",
        |text| {
            text.starts_with("<?xml ")
                && text.ends_with("</svg>\n")
                && text.contains(">orlop-journal.service (")
                && text.contains(">boot.mount-root (")
        },
    );
    hears(
        &mut logbook,
        "syslog messages reach the other machine, from the boot's begin on",
        &syslog,
        &[
            "Linux version",
            " logbook sh ",
            " - [orlop@32473 unit=\"tagged.service\"",
            "] plain words",
            "<27>1 ",
        ],
    );
    hears(
        &mut logbook,
        "Loki gets what is urgent, again after it was not ready",
        &loki,
        &[
            "POST /loki/api/v1/push HTTP/1.1",
            "\"bad words\"",
            "\"unit\":\"tagged.service\"",
        ],
    );
    logbook.check("and nothing that is not", |_| {
        let heard = loki.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(
            !String::from_utf8_lossy(&heard).contains("plain words"),
            "it does"
        );
        Ok(())
    });
    logbook.command(
        "a line is on the disk within a second or so",
        "sudo systemctl start last.service; sleep 3; journalctl -n 1 -u last -o cat -g written",
        |text| text == "written a while before the end\n",
    );
    logbook.cut_power();
    logbook.switch_on();
    logbook.need("it comes up after the power was cut", |guest| {
        guest.wait_for_ssh().map(|_| ())
    });
    logbook.command(
        "the boot before the cut is all there",
        "journalctl --list-boots | tail -n +2 | wc -l; journalctl -b -1 -u last -g written -o cat; \
         journalctl -b -1 -k -o cat | head -n 1; journalctl -b -1 -u count -o cat | grep -c count; sudo journalctl --verify",
        |text| {
            let lines: Vec<&str> = text.lines().collect();
            lines.len() >= 5
                && lines[0] == "2"
                && lines[1] == "written a while before the end"
                && lines[2].starts_with("Linux version")
                && lines[3].parse::<u32>().is_ok_and(|count| count >= 80)
                && text.ends_with(" 0 damaged places\n")
        },
    );
    logbook.command(
        "old files go when they are told to",
        "sudo journalctl --vacuum-size=1K >/dev/null; journalctl --list-boots -q | wc -l; journalctl --disk-usage",
        |text| text.starts_with("1\nArchived and active journals take up "),
    );
    logbook.power_off();
    logbook.finish();
}
