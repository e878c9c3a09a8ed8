//! v2 beside Debian's `etcd --enable-v2`: same requests, same answers.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use crate::etcdctl::{Server, pair};

/// An answer: status, `X-Etcd-Index`, body.
#[derive(Debug, PartialEq)]
struct Answer {
    status: u16,
    index: Option<i64>,
    body: String,
}

fn connect(server: &Server, method: &str, path: &str, form: &str) -> BufReader<TcpStream> {
    let mut stream = TcpStream::connect(server.address).expect("it listens");
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .expect("a socket");
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{form}",
        form.len()
    );
    stream.write_all(request.as_bytes()).expect("it reads");
    BufReader::new(stream)
}

/// Status and index from the head of an answer, and whether the body comes in chunks.
fn head(stream: &mut impl BufRead) -> (u16, Option<i64>, bool) {
    let mut line = String::new();
    stream.read_line(&mut line).expect("a status");
    let status = line.split(' ').nth(1).and_then(|s| s.parse().ok());
    let (mut index, mut chunked) = (None, false);
    loop {
        line.clear();
        stream.read_line(&mut line).expect("a header");
        let lower = line.to_lowercase();
        if let Some(value) = lower.strip_prefix("x-etcd-index: ") {
            index = value.trim().parse().ok();
        }
        chunked |= lower.starts_with("transfer-encoding: chunked");
        if line.trim().is_empty() {
            return (status.expect("a status"), index, chunked);
        }
    }
}

/// The first line of a body.
fn first_line(stream: &mut impl BufRead, chunked: bool) -> String {
    let mut line = String::new();
    if chunked {
        stream.read_line(&mut line).expect("a chunk's length");
        line.clear();
    }
    stream.read_line(&mut line).expect("a line");
    line.trim_end().to_owned()
}

fn ask(server: &Server, method: &str, path: &str, form: &str) -> Answer {
    let mut stream = connect(server, method, path, form);
    let (status, index, chunked) = head(&mut stream);
    let mut body = String::new();
    if chunked {
        body = first_line(&mut stream, true);
    } else {
        stream.read_to_string(&mut body).expect("a body");
    }
    Answer {
        status,
        index,
        body: body.trim_end().to_owned(),
    }
}

/// Takes away what differs between two stores: where the index begins, and the time.
fn normalised(value: Value, base: i64) -> Value {
    let named = |text: &str| match text.rsplit_once('/') {
        Some((before, name)) if name.len() == 20 && name.starts_with("00000") => {
            let index: i64 = name.parse().unwrap_or(0);
            format!("{before}/#{}", index - base)
        }
        _ => text.to_owned(),
    };
    match value {
        Value::Object(fields) => {
            let field = |(name, value): (String, Value)| {
                let value = match (name.as_str(), value) {
                    ("modifiedIndex" | "createdIndex" | "index", Value::Number(n)) => {
                        Value::from(n.as_i64().unwrap_or(0).max(base) - base)
                    }
                    ("expiration", _) => Value::from("*"),
                    ("key" | "cause", Value::String(text)) => Value::from(named(&text)),
                    // Without `sorted` the order is up to the store.
                    ("nodes", Value::Array(mut nodes)) => {
                        nodes.sort_by_key(|n| n["key"].as_str().unwrap_or_default().to_owned());
                        normalised(Value::Array(nodes), base)
                    }
                    // What a key had left to live before it was changed is not told here.
                    ("prevNode", Value::Object(mut node)) => {
                        node.remove("ttl");
                        node.remove("expiration");
                        normalised(Value::Object(node), base)
                    }
                    (_, value) => normalised(value, base),
                };
                (name, value)
            };
            Value::Object(fields.into_iter().map(field).collect())
        }
        Value::Array(items) => items.into_iter().map(|v| normalised(v, base)).collect(),
        other => other,
    }
}

fn comparable(answer: Answer, base: i64) -> (u16, Option<i64>, Value) {
    let body = serde_json::from_str(&answer.body).unwrap_or(Value::from(answer.body));
    // Errors of parsing have the index 0.
    let index = answer.index.map(|i| if i == 0 { i } else { i - base });
    (answer.status, index, normalised(body, base))
}

const REQUESTS: &[(&str, &str, &str)] = &[
    ("GET", "/v2/keys/none", ""),
    ("GET", "/v2/keys/none/deeper", ""),
    ("PUT", "/v2/keys/a", "value=one"),
    ("GET", "/v2/keys/a", ""),
    ("GET", "/v2/keys/a?quorum=true", ""),
    ("PUT", "/v2/keys/a", "value=two"),
    ("PUT", "/v2/keys/a", ""),
    ("PUT", "/v2/keys/a?value=three", ""),
    ("PUT", "/v2/keys/a", "value=no&prevExist=false"),
    ("PUT", "/v2/keys/fresh", "value=yes&prevExist=false"),
    ("PUT", "/v2/keys/missing", "value=no&prevExist=true"),
    ("PUT", "/v2/keys/a", "value=four&prevExist=true"),
    ("PUT", "/v2/keys/a", "value=five&prevValue=four"),
    ("PUT", "/v2/keys/a", "value=six&prevValue=zzz"),
    ("PUT", "/v2/keys/a", "value=six&prevValue="),
    ("PUT", "/v2/keys/missing", "value=six&prevValue=x"),
    ("PUT", "/v2/keys/a/below", "value=no"),
    ("GET", "/v2/keys/a/below", ""),
    ("PUT", "/v2/keys/d/e/f", "value=deep"),
    ("GET", "/v2/keys/d", ""),
    ("GET", "/v2/keys/d?recursive=true", ""),
    ("PUT", "/v2/keys/d", "value=no"),
    ("PUT", "/v2/keys/d", "dir=true"),
    ("PUT", "/v2/keys/d", "dir=true&prevExist=true"),
    ("PUT", "/v2/keys/d", "value=no&prevExist=true"),
    ("PUT", "/v2/keys/empty", "dir=true"),
    ("GET", "/v2/keys/empty", ""),
    ("PUT", "/v2/keys/d/_hidden", "value=h"),
    ("PUT", "/v2/keys/d/shown", "value=s"),
    ("GET", "/v2/keys/d?sorted=true&recursive=true", ""),
    ("GET", "/v2/keys/d/_hidden", ""),
    ("POST", "/v2/keys/queue", "value=first"),
    ("POST", "/v2/keys/queue", "value=second"),
    ("POST", "/v2/keys/queue", "dir=true"),
    ("GET", "/v2/keys/queue?sorted=true", ""),
    ("DELETE", "/v2/keys/queue", ""),
    ("DELETE", "/v2/keys/queue?dir=true", ""),
    ("DELETE", "/v2/keys/queue?recursive=true", ""),
    ("DELETE", "/v2/keys/empty?dir=true", ""),
    ("DELETE", "/v2/keys/missing", ""),
    ("DELETE", "/v2/keys/a?prevValue=zzz", ""),
    ("DELETE", "/v2/keys/a?prevValue=five", ""),
    ("DELETE", "/v2/keys/d?prevValue=x", ""),
    ("DELETE", "/v2/keys/fresh", ""),
    ("DELETE", "/v2/keys/", ""),
    ("PUT", "/v2/keys/", "value=x"),
    ("PUT", "/v2/keys/t", "value=x&ttl=100"),
    ("GET", "/v2/keys/t", ""),
    ("PUT", "/v2/keys/t", "ttl=200&refresh=true&prevExist=true"),
    ("GET", "/v2/keys/t", ""),
    ("PUT", "/v2/keys/t", "value=y&ttl=&prevExist=true"),
    ("GET", "/v2/keys/t", ""),
    ("PUT", "/v2/keys/t", "value=x&ttl=abc"),
    ("PUT", "/v2/keys/t", "value=x&refresh=true&ttl=3"),
    ("PUT", "/v2/keys/t", "refresh=true"),
    ("PUT", "/v2/keys/t?wait=true", "value=x"),
    ("PUT", "/v2/keys/t", "value=x&prevIndex=abc"),
    ("GET", "/v2/keys/t?recursive=maybe", ""),
    ("PUT", "/v2/keys/quiet?noValueOnSuccess=true", "value=x"),
    ("PATCH", "/v2/keys/t", ""),
    ("GET", "/v2/keys/", ""),
    ("GET", "/v2/keys/?recursive=true&sorted=true", ""),
];

fn base(server: &Server) -> i64 {
    ask(server, "GET", "/v2/keys/", "").index.expect("an index")
}

#[test]
fn v2_answers_as_etcd_does() {
    let (_directory, ours, etcd) = pair();
    let (our_base, etcd_base) = (base(&ours), base(&etcd));
    let mut differences = Vec::new();
    for (method, path, form) in REQUESTS {
        let one = comparable(ask(&ours, method, path, form), our_base);
        let two = comparable(ask(&etcd, method, path, form), etcd_base);
        if one != two {
            differences.push(format!(
                "{method} {path} {form:?}\n  ours {one:?}\n  etcd {two:?}"
            ));
        }
    }
    // Waits in the past find the same; what each is told depends on nothing but the history.
    for (path, index) in [
        ("/v2/keys/a", 1),
        ("/v2/keys/a", 3),
        ("/v2/keys/d?recursive=true&", 1),
        ("/v2/keys/queue/x", 15),
        ("/v2/keys/?recursive=true", 10),
        ("/v2/keys/t", 20),
    ] {
        let join = if path.contains('?') { "&" } else { "?" };
        let wait = |base: i64| format!("{path}{join}wait=true&waitIndex={}", base + index);
        let one = comparable(ask(&ours, "GET", &wait(our_base), ""), our_base);
        let mut two = comparable(ask(&etcd, "GET", &wait(etcd_base), ""), etcd_base);
        if let Some(node) = two.2["node"].as_object_mut() {
            // A time to live that has been changed since is not told of the past.
            node.remove("ttl");
            node.remove("expiration");
        }
        if one != two {
            differences.push(format!(
                "wait {path} {index}\n  ours {one:?}\n  etcd {two:?}"
            ));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    // Both conditions are named, with what is there.
    ask(&ours, "PUT", "/v2/keys/both", "value=there");
    let failed = ask(
        &ours,
        "PUT",
        "/v2/keys/both",
        "value=x&prevValue=zzz&prevIndex=99999",
    );
    assert!(
        failed.body.contains("[zzz != there] [99999 != "),
        "{failed:?}"
    );
}

#[test]
fn v2_and_v3_see_each_others_keys_and_a_kill_loses_none() {
    let (_directory, mut ours, _etcd) = pair();
    let stdout = |server: &Server, words: &[&str]| {
        let output = server.run(words, "");
        String::from_utf8_lossy(&output.stdout)
            .trim_end()
            .to_owned()
    };
    assert_eq!(stdout(&ours, &["put", "/services/web/1", "three"]), "OK");
    let seen = ask(&ours, "GET", "/v2/keys/services?recursive=true", "");
    assert!(
        seen.body
            .contains("\"key\":\"/services/web/1\",\"value\":\"three\""),
        "{seen:?}"
    );
    assert_eq!(
        ask(&ours, "PUT", "/v2/keys/from/two", "value=v2").status,
        201
    );
    ours.crash();
    assert_eq!(stdout(&ours, &["get", "/from/two"]), "/from/two\nv2");
    assert_eq!(ask(&ours, "GET", "/v2/keys/services/web/1", "").status, 200);
}

#[test]
fn v2_waits_are_told_of_what_comes_and_of_the_end_of_what_lived_for_a_time() {
    let (_directory, ours, _etcd) = pair();
    let mut waiting = connect(&ours, "GET", "/v2/keys/w?wait=true&recursive=true", "");
    // The head comes at once, so the watch is there before the write.
    let (status, _, chunked) = head(&mut waiting);
    assert_eq!(status, 200);
    ask(&ours, "PUT", "/v2/keys/w/_hidden", "value=h");
    ask(&ours, "PUT", "/v2/keys/w/x", "value=told");
    let told: Value = serde_json::from_str(&first_line(&mut waiting, chunked)).expect("JSON");
    assert_eq!(
        (&told["action"], &told["node"]["value"]),
        (&"set".into(), &"told".into())
    );
    // A directory that lived for a second takes what is in it along; one event tells it, to those below too.
    ask(&ours, "PUT", "/v2/keys/short", "dir=true&ttl=1");
    ask(&ours, "PUT", "/v2/keys/short/child", "value=c");
    let mut waiting = connect(&ours, "GET", "/v2/keys/short/child?wait=true", "");
    let (_, _, chunked) = head(&mut waiting);
    let told: Value = serde_json::from_str(&first_line(&mut waiting, chunked)).expect("JSON");
    assert_eq!(
        (&told["action"], &told["node"]["key"]),
        (&"expire".into(), &"/short".into())
    );
    assert_eq!(ask(&ours, "GET", "/v2/keys/short/child", "").status, 404);
    // A stream goes on.
    let mut stream = connect(&ours, "GET", "/v2/keys/s?wait=true&stream=true", "");
    let (_, _, chunked) = head(&mut stream);
    for value in ["1", "2"] {
        ask(&ours, "PUT", "/v2/keys/s", &format!("value={value}"));
        let told: Value = serde_json::from_str(&first_line(&mut stream, chunked)).expect("JSON");
        assert_eq!(told["node"]["value"], *value);
        let mut end = String::new();
        stream.read_line(&mut end).expect("a chunk's end");
    }
}
