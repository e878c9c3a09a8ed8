//! Records as a request of Loki's push API, and the answer to it. Pure.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::entry::PRIORITY_NAMES;
use crate::reader::Record;

/// The path of the API.
pub(super) const PATH: &str = "/loki/api/v1/push";

/// The body: a stream for each set of labels, in it the lines with their times in nanoseconds.
pub(super) fn body(records: &[Record], hostname: &str) -> Vec<u8> {
    type Lines = Vec<[String; 2]>;
    let mut streams: BTreeMap<(String, u8, &str), Lines> = BTreeMap::new();
    for record in records {
        let entry = &record.entry;
        let unit = entry.unit.clone().unwrap_or_default();
        let lines = streams
            .entry((unit, entry.priority & 7, entry.transport.name()))
            .or_default();
        // Loki takes two equal lines of one moment for one. Records of the same µs have numbers of their own.
        let ns = entry.realtime_us.saturating_mul(1000);
        let ns = ns.saturating_add(entry.sequence % 1000);
        let text = String::from_utf8_lossy(&entry.message).into_owned();
        lines.push([ns.to_string(), text]);
    }
    let streams: Vec<Value> = streams
        .into_iter()
        .map(|((unit, priority, transport), lines)| {
            let mut labels = json!({
                "job": "orlop",
                "host": hostname,
                "level": PRIORITY_NAMES[usize::from(priority)],
                "transport": transport,
            });
            if !unit.is_empty() {
                labels["unit"] = unit.into();
            }
            json!({ "stream": labels, "values": lines })
        })
        .collect();
    json!({ "streams": streams }).to_string().into_bytes()
}

/// The whole request, for a connection of its own.
pub(super) fn request(host: &str, port: u16, path: &str, body: &[u8]) -> Vec<u8> {
    let host = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    };
    let length = body.len();
    let mut out = format!(
        "POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: orlop\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n"
    )
    .into_bytes();
    out.extend_from_slice(body);
    out
}

/// What a server's answer says of the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is taken.
    Taken,
    /// Not now.
    Later(String),
    /// Not ever.
    Never(String),
}

/// Reads the beginning of an answer; `None` when it is none.
pub(super) fn answer(bytes: &[u8]) -> Option<Answer> {
    let text = String::from_utf8_lossy(bytes);
    let (line, rest) = text.split_once("\r\n")?;
    let status = line.strip_prefix("HTTP/1.")?.split_once(' ')?.1;
    let code: u16 = status.get(..3)?.parse().ok()?;
    let reason = rest
        .split_once("\r\n\r\n")
        .map_or("", |(_, body)| body.trim());
    let reason: String = reason
        .chars()
        .filter(|c| !c.is_control())
        .take(200)
        .collect();
    let text = || {
        format!("the server says {} {reason}", status.trim())
            .trim_end()
            .to_owned()
    };
    Some(match code {
        200..=299 => Answer::Taken,
        408 | 429 | 500..=599 => Answer::Later(text()),
        _ => Answer::Never(text()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{Entry, Id, Transport};
    use proptest::prelude::*;

    fn record(unit: Option<&str>, priority: u8, sequence: u64, text: &str) -> Record {
        let mut entry = Entry::new(priority, Transport::Stdout, text.as_bytes().to_vec());
        entry.sequence = sequence;
        entry.realtime_us = 1_795_237_801_000_042;
        entry.unit = unit.map(str::to_owned);
        Record {
            journal: Id([1; 16]),
            machine: Id([2; 16]),
            boot: Id([3; 16]),
            entry,
        }
    }

    #[test]
    fn lines_stand_under_their_labels_in_order_and_each_for_itself() {
        let records = [
            record(Some("web.service"), 6, 1, "same"),
            record(None, 3, 2, "other"),
            record(Some("web.service"), 6, 3, "same"),
        ];
        let body: Value = serde_json::from_slice(&body(&records, "deck")).unwrap();
        let expected = json!({"streams": [
            {"stream": {"job": "orlop", "host": "deck", "level": "err", "transport": "stdout"},
             "values": [["1795237801000042002", "other"]]},
            {"stream": {"job": "orlop", "host": "deck", "level": "info", "transport": "stdout", "unit": "web.service"},
             "values": [["1795237801000042001", "same"], ["1795237801000042003", "same"]]},
        ]});
        assert_eq!(body, expected);
    }

    #[test]
    fn an_answer_is_taken_later_or_never() {
        let said = |text: &str| answer(text.as_bytes());
        assert_eq!(said("HTTP/1.1 204 No Content\r\n\r\n"), Some(Answer::Taken));
        let later = "the server says 429 Too Many Requests slow down";
        assert_eq!(
            said("HTTP/1.1 429 Too Many Requests\r\nA: b\r\n\r\nslow\n down\n"),
            Some(Answer::Later(later.to_owned()))
        );
        let never = "the server says 400 Bad Request";
        assert_eq!(
            said("HTTP/1.0 400 Bad Request\r\n\r\n"),
            Some(Answer::Never(never.to_owned()))
        );
        for text in [
            "",
            "HTTP/1.1",
            "HTTP/1.1 2\r\n",
            "SSH-2.0-x\r\n",
            "HTTP/1.1 é00 x\r\n",
        ] {
            assert_eq!(said(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_answer_is_taken(bytes in proptest::collection::vec(any::<u8>(), 0..100), text in "HTTP/1.1 \\PC{0,9}\r\n") {
            let _ = answer(&bytes);
            let _ = answer(text.as_bytes());
        }
    }
}
