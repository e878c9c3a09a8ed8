//! `get`, `put`, `del` and `txn`.

use std::io::{BufRead, Read as _};

use orlop_store::proto::etcdserverpb as pb;
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::kv_client::KvClient;
use pb::range_request::{SortOrder, SortTarget};
use pb::request_op::Request;
use tonic::transport::Channel;

use super::flags::{Flag, Given, Until};
use super::print::{Format, say};
use super::text::{quoted, unquote};
use super::{Call, Failure, Outcome, hex_id};

pub(super) const GET: &[Flag] = &[
    Flag::value("consistency", "l", "l (linearizable) or s (serializable)"),
    Flag::switch(
        "from-key",
        "keys from the given one on, in the order of bytes",
    ),
    Flag::switch("keys-only", "without the values"),
    Flag::value("limit", "0", "the most results"),
    Flag::value("order", "", "ASCEND or DESCEND"),
    Flag::switch("prefix", "all keys that begin so"),
    Flag::switch("print-value-only", "without the keys, in the simple form"),
    Flag::value("rev", "0", "as of this revision"),
    Flag::value("sort-by", "", "CREATE, KEY, MODIFY, VALUE or VERSION"),
];

pub(super) const PUT: &[Flag] = &[
    Flag::switch("ignore-lease", "keep the key's lease"),
    Flag::switch("ignore-value", "keep the key's value"),
    Flag::value("lease", "0", "bind the key to this lease (hexadecimal)"),
    Flag::switch("prev-kv", "tell what was there before"),
];

pub(super) const DEL: &[Flag] = &[
    Flag::switch(
        "from-key",
        "keys from the given one on, in the order of bytes",
    ),
    Flag::switch("prefix", "all keys that begin so"),
    Flag::switch("prev-kv", "tell what was there before"),
];

pub(super) const TXN: &[Flag] =
    &[Flag::switch("interactive", "ask for each part by its name").short('i')];

pub(super) fn client(channel: Channel) -> KvClient<Channel> {
    // The server's answers have no limit.
    KvClient::new(channel).max_decoding_message_size(usize::MAX)
}

/// The end of the range of keys that begin with `prefix`.
pub(super) fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

/// A key and the end of its range, by `--prefix`, `--from-key` and a second word.
fn range(given: &Given) -> Result<(Vec<u8>, Vec<u8>), Failure> {
    let (prefix, from) = (given.is_set("prefix"), given.is_set("from-key"));
    if prefix && from {
        return Err(Failure::bad_arguments(
            "`--prefix` and `--from-key` cannot be set at the same time, choose one",
        ));
    }
    let key = given.words.first().map(|w| w.as_bytes().to_vec());
    let key = key.unwrap_or_default();
    Ok(match given.words.get(1) {
        Some(_) if prefix || from => {
            return Err(Failure::bad_arguments(
                "too many arguments, only accept one argument when `--prefix` or `--from-key` is set",
            ));
        }
        Some(end) => (key, end.as_bytes().to_vec()),
        None if key.is_empty() && (prefix || from) => (vec![0], vec![0]),
        None if from => (key, vec![0]),
        None if prefix => {
            let end = prefix_end(&key);
            (key, end)
        }
        None => (key, Vec::new()),
    })
}

fn get_request(given: &Given) -> Result<pb::RangeRequest, Failure> {
    if given.words.is_empty() {
        return Err(Failure::bad_arguments(
            "get command needs one argument as key and an optional argument as range_end",
        ));
    }
    let (key, range_end) = range(given)?;
    let serializable = match given.get("consistency") {
        "s" => true,
        "l" => false,
        other => {
            return Err(Failure::new(
                4,
                format!("unknown consistency flag {other:?}"),
            ));
        }
    };
    let (order, target) = (given.get("order"), given.get("sort-by"));
    let sort_order = match order.to_uppercase().as_str() {
        "ASCEND" => SortOrder::Ascend,
        "DESCEND" => SortOrder::Descend,
        "" => SortOrder::None,
        _ => return Err(Failure::new(4, format!("bad sort order {order}"))),
    };
    let sort_target = match target.to_uppercase().as_str() {
        "CREATE" => SortTarget::Create,
        "KEY" | "" => SortTarget::Key,
        "MODIFY" => SortTarget::Mod,
        "VALUE" => SortTarget::Value,
        "VERSION" => SortTarget::Version,
        _ => return Err(Failure::new(4, format!("bad sort target {target}"))),
    };
    Ok(pb::RangeRequest {
        key,
        range_end,
        limit: given.number("limit")?,
        revision: given.number("rev")?.max(0),
        sort_order: sort_order.into(),
        sort_target: sort_target.into(),
        serializable,
        keys_only: given.is_set("keys-only"),
        ..pb::RangeRequest::default()
    })
}

fn put_request(given: &Given) -> Result<pb::PutRequest, Failure> {
    const NEEDS: &str = "put command needs 1 argument and input from stdin or 2 arguments";
    let ignore_value = given.is_set("ignore-value");
    let Some(key) = given.words.first() else {
        return Err(Failure::bad_arguments(NEEDS));
    };
    if ignore_value && given.words.len() > 1 {
        return Err(Failure::bad_arguments(
            "put command needs only 1 argument when 'ignore-value' is set",
        ));
    }
    let value = match ignore_value {
        true => Vec::new(),
        false => word_or_input(&given.words, 1).ok_or_else(|| Failure::bad_arguments(NEEDS))?,
    };
    let lease = given.get("lease");
    let lease = i64::from_str_radix(lease, 16).map_err(|_| {
        Failure::bad_arguments(format!(
            "bad lease ID (strconv.ParseInt: parsing {lease:?}: invalid syntax), expecting ID in Hex"
        ))
    })?;
    Ok(pb::PutRequest {
        key: key.as_bytes().to_vec(),
        value,
        lease,
        prev_kv: given.is_set("prev-kv"),
        ignore_value,
        ignore_lease: given.is_set("ignore-lease"),
    })
}

fn delete_request(given: &Given) -> Result<pb::DeleteRangeRequest, Failure> {
    if given.words.is_empty() || given.words.len() > 2 {
        return Err(Failure::bad_arguments(
            "del command needs one argument as key and an optional argument as range_end",
        ));
    }
    let (key, range_end) = range(given)?;
    Ok(pb::DeleteRangeRequest {
        key,
        range_end,
        prev_kv: given.is_set("prev-kv"),
    })
}

/// A word, or else all of standard input; nothing when that is empty.
pub(super) fn word_or_input(words: &[String], place: usize) -> Option<Vec<u8>> {
    if let Some(word) = words.get(place) {
        return Some(word.as_bytes().to_vec());
    }
    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input).ok()?;
    (!input.is_empty()).then_some(input)
}

pub(super) fn get(call: &Call) -> Outcome {
    let request = get_request(&call.given)?;
    let ask = async |channel| client(channel).range(request).await;
    let answer = call.ask(ask)?;
    let mut printer = call.printer()?;
    if call.given.is_set("print-value-only") {
        if printer.format != Format::Simple {
            return Err(Failure::bad_arguments(
                "print-value-only is only for `--write-out=simple`",
            ));
        }
        printer.value_only = true;
    }
    printer.show(printer.get(&answer))
}

pub(super) fn put(call: &Call) -> Outcome {
    let request = put_request(&call.given)?;
    let answer = call.ask(async |channel| client(channel).put(request).await)?;
    let printer = call.printer()?;
    printer.show(printer.put(&answer))
}

pub(super) fn delete(call: &Call) -> Outcome {
    let request = delete_request(&call.given)?;
    let answer = call.ask(async |channel| client(channel).delete_range(request).await)?;
    let printer = call.printer()?;
    printer.show(printer.delete(&answer))
}

pub(super) fn txn(call: &Call) -> Outcome {
    if !call.given.words.is_empty() {
        return Err(Failure::bad_arguments(
            "txn command does not accept argument",
        ));
    }
    let ask = |what: &str| {
        if call.given.is_set("interactive") {
            say(format!("{what}\n"));
        }
    };
    let mut input = std::io::stdin().lock();
    ask("compares:");
    let compare = lines(&mut input, compare)?;
    ask("success requests (get, put, del):");
    let success = lines(&mut input, operation)?;
    ask("failure requests (get, put, del):");
    let failure = lines(&mut input, operation)?;
    let request = pb::TxnRequest {
        compare,
        success,
        failure,
    };
    let answer = call.ask(async |channel| client(channel).txn(request).await)?;
    let printer = call.printer()?;
    printer.show(printer.txn(&answer))
}

/// What the lines up to an empty one mean.
fn lines<T>(
    input: &mut impl BufRead,
    read: impl Fn(&str) -> Result<T, Failure>,
) -> Result<Vec<T>, Failure> {
    let mut all = Vec::new();
    loop {
        let mut line = String::new();
        match input.read_line(&mut line) {
            Ok(0) => return Err(Failure::new(3, "EOF")),
            Err(err) => return Err(Failure::new(3, err.to_string())),
            Ok(_) if line.trim().is_empty() => return Ok(all),
            Ok(_) => all.push(read(line.trim())?),
        }
    }
}

/// `target("key") op "value"`.
fn compare(line: &str) -> Result<pb::Compare, Failure> {
    let malformed = |why: &str| Failure::new(3, format!("malformed comparison: {line}{why}"));
    let (target, rest) = line.split_once('(').ok_or_else(|| malformed(""))?;
    let parts = unquote(rest.trim_start()).and_then(|(key, rest)| {
        let rest = rest.strip_prefix(')')?.trim_start();
        let (op, rest) = rest.split_once(char::is_whitespace)?;
        let (value, _) = unquote(rest.trim_start())?;
        Some((key, op, value))
    });
    let Some((key, op, value)) = parts else {
        return Err(malformed("; got neither a key nor a value in quotes"));
    };
    let number = || {
        let text = std::str::from_utf8(&value).ok();
        text.and_then(|text| text.parse::<i64>().ok())
            .ok_or_else(|| Failure::new(3, format!("invalid txn compare request: {line}")))
    };
    let (target, union) = match target {
        "ver" | "version" => (CompareTarget::Version, TargetUnion::Version(number()?)),
        "c" | "create" => (
            CompareTarget::Create,
            TargetUnion::CreateRevision(number()?),
        ),
        "m" | "mod" => (CompareTarget::Mod, TargetUnion::ModRevision(number()?)),
        "val" | "value" => (CompareTarget::Value, TargetUnion::Value(value)),
        "lease" => {
            // As everywhere, a lease is a hexadecimal number.
            let text = std::str::from_utf8(&value).ok();
            let id = text.and_then(|text| i64::from_str_radix(text, 16).ok());
            let id =
                id.ok_or_else(|| Failure::new(3, format!("invalid txn compare request: {line}")))?;
            (CompareTarget::Lease, TargetUnion::Lease(id))
        }
        other => return Err(malformed(&format!(" (unknown target {other})"))),
    };
    let result = match op {
        "=" => CompareResult::Equal,
        "!=" => CompareResult::NotEqual,
        ">" => CompareResult::Greater,
        "<" => CompareResult::Less,
        _ => return Err(malformed(&format!(" (unknown result op {op})"))),
    };
    Ok(pb::Compare {
        result: result.into(),
        target: target.into(),
        key,
        range_end: Vec::new(),
        target_union: Some(union),
    })
}

/// `get`, `put` or `del` with its arguments, which may be in quotes.
fn operation(line: &str) -> Result<pb::RequestOp, Failure> {
    let invalid = || Failure::new(3, format!("invalid txn request: {line}"));
    let words = split(line).ok_or_else(invalid)?;
    let Some((verb, words)) = words.split_first().filter(|(_, rest)| !rest.is_empty()) else {
        return Err(Failure::new(
            3,
            format!("invalid txn compare request: {line}"),
        ));
    };
    let read = |flags| Given::read(&[flags], words, Until::End, |_| None).map_err(|_| invalid());
    let request = match verb.as_str() {
        "get" => Request::RequestRange(get_request(&read(GET)?)?),
        "put" => Request::RequestPut(put_request(&read(PUT)?)?),
        "del" => Request::RequestDeleteRange(delete_request(&read(DEL)?)?),
        _ => return Err(invalid()),
    };
    Ok(pb::RequestOp {
        request: Some(request),
    })
}

/// The words of a line: in double quotes with escapes, in single quotes, or plain.
pub(super) fn split(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        if rest.starts_with('"') {
            let (word, after) = unquote(rest)?;
            words.push(String::from_utf8(word).ok()?);
            rest = after;
        } else if let Some(after) = rest.strip_prefix('\'') {
            let (word, after) = after.split_once('\'')?;
            words.push(word.to_owned());
            rest = after;
        } else {
            let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
            words.push(rest[..end].to_owned());
            rest = &rest[end..];
        }
        rest = rest.trim_start();
    }
    Some(words)
}

pub(super) const COMPACTION: &[Flag] = &[Flag::switch(
    "physical",
    "wait until the space is given back",
)];

pub(super) fn compaction(call: &Call) -> Outcome {
    let [word] = call.given.words.as_slice() else {
        return Err(Failure::bad_arguments(
            "compaction command needs 1 argument",
        ));
    };
    let revision: i64 = word.parse().map_err(|_| {
        let word = quoted(word.as_bytes());
        Failure::new(
            1,
            format!("strconv.ParseInt: parsing {word}: invalid syntax"),
        )
    })?;
    let request = pb::CompactionRequest {
        revision,
        physical: call.given.is_set("physical"),
    };
    call.ask(async |channel| client(channel).compact(request).await)?;
    say(format!("compacted revision {revision}\n"));
    Ok(())
}

/// The lease that a word names.
pub(super) fn lease_of(word: &str) -> Result<i64, Failure> {
    i64::from_str_radix(word, 16).map_err(|_| {
        Failure::bad_arguments(format!(
            "bad lease ID arg (strconv.ParseInt: parsing {word:?}: invalid syntax), expecting ID in Hex"
        ))
    })
}

/// The member that a word names.
pub(super) fn member_of(word: &str) -> Result<u64, Failure> {
    hex_id(word).ok_or_else(|| {
        Failure::bad_arguments(format!(
            "bad member ID arg (strconv.ParseUint: parsing {word:?}: invalid syntax), expecting ID in Hex"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_ends_behind_all_keys_with_the_prefix() {
        assert_eq!(prefix_end(b"ab"), b"ac");
        assert_eq!(prefix_end(b"a\xff"), b"b");
        assert_eq!(prefix_end(b"\xff"), b"\0");
    }

    #[test]
    fn comparisons_and_operations_are_read_from_lines() {
        let read = compare("mod(\"k\") != \"7\"").expect("it is one");
        assert_eq!(read.target_union, Some(TargetUnion::ModRevision(7)));
        assert_eq!(read.result(), CompareResult::NotEqual);
        for wrong in [
            "",
            "mod",
            "mod(k) = 1",
            "mod(\"k\") = \"x\"",
            "x(\"k\") = \"1\"",
            "m(\"k\") ~ \"1\"",
        ] {
            assert!(compare(wrong).is_err(), "{wrong:?}");
        }
        let read = operation("put \"a b\" 'c \"d' --prev-kv").expect("it is one");
        let Some(Request::RequestPut(put)) = read.request else {
            panic!("{read:?}");
        };
        assert_eq!(
            (put.key, put.value, put.prev_kv),
            (b"a b".to_vec(), b"c \"d".to_vec(), true)
        );
        for wrong in ["put", "rm x", "get x --no", "get \"x"] {
            assert!(operation(wrong).is_err(), "{wrong:?}");
        }
    }
}
