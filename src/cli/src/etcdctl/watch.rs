//! `watch`: events as they come, and from the past.

use std::process::{Command, Stdio};

use orlop_store::proto::etcdserverpb as pb;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request};

use super::channel::text_of;
use super::flags::{Flag, Given, Until};
use super::keys::{prefix_end, split};
use super::print::{Printer, event_name, say};
use super::text::quoted;
use super::{Call, Failure, Outcome};

pub(super) const WATCH: &[Flag] = &[
    Flag::switch("interactive", "watches are told line by line").short('i'),
    Flag::switch("prefix", "all keys that begin so"),
    Flag::switch("prev-kv", "tell what was there before each event"),
    Flag::value("rev", "0", "from this revision on"),
];

/// Requests of one stream that may wait.
const REQUESTS: usize = 16;

/// What is watched, and what is run for each event.
#[derive(Clone, Debug, Default)]
struct Watched {
    create: pb::WatchCreateRequest,
    program: Vec<String>,
}

/// What the words and the environment mean.
fn watched(given: &Given, key: &str, range_end: &str) -> Result<Watched, Failure> {
    let bad = |why: &str| Err(Failure::bad_arguments(why));
    if key.is_empty() && !range_end.is_empty() {
        return bad(&format!(
            "ETCDCTL_WATCH_KEY is empty but got ETCDCTL_WATCH_RANGE_END={range_end:?}"
        ));
    }
    let (mut words, program) = match given.separator {
        None => (given.words.clone(), Vec::new()),
        Some(at) if at == given.words.len() => {
            return bad("bad number of arguments (found separator --, but no commands)");
        }
        Some(at) => (
            given.words.get(..at).unwrap_or_default().to_vec(),
            given.words.get(at..).unwrap_or_default().to_vec(),
        ),
    };
    if !key.is_empty() {
        if !words.is_empty() {
            return bad("bad number of arguments (found conflicting environment key)");
        }
        words.push(key.to_owned());
        words.extend(Some(range_end.to_owned()).filter(|end| !end.is_empty()));
    }
    let prefix = given.is_set("prefix");
    let (key, end) = match words.as_slice() {
        [key] if prefix => (key, prefix_end(key.as_bytes())),
        [key] => (key, Vec::new()),
        [_, _] if prefix => return bad("`range_end` and `--prefix` are mutually exclusive"),
        [key, end] => (key, end.as_bytes().to_vec()),
        _ => return bad("bad number of arguments"),
    };
    let mut create = pb::WatchCreateRequest {
        key: key.as_bytes().to_vec(),
        range_end: end,
        start_revision: given.number("rev")?,
        prev_kv: given.is_set("prev-kv"),
        ..pb::WatchCreateRequest::default()
    };
    if create.key.is_empty() {
        create.key = vec![0];
        if prefix {
            create.range_end = vec![0];
        }
    }
    Ok(Watched { create, program })
}

pub(super) fn watch(call: &Call) -> Outcome {
    let variable = |name| std::env::var(name).unwrap_or_default();
    let key = variable("ETCDCTL_WATCH_KEY");
    let range_end = variable("ETCDCTL_WATCH_RANGE_END");
    if call.given.is_set("interactive") {
        return call.run(interactive(call, &key, &range_end));
    }
    let watched = watched(&call.given, &key, &range_end)?;
    let printer = call.printer()?;
    call.run(async {
        // The sender is kept: a dropped one would end the stream's questions.
        let (_questions, progress) = mpsc::channel(1);
        follow(call, watched, printer, progress).await
    })?;
    Err(Failure::new(5, "watch is canceled by the server"))
}

/// Watches from lines: `watch [flags] KEY [END] [-- PROGRAM…]`, and `progress`.
async fn interactive(call: &Call, key: &str, range_end: &str) -> Outcome {
    let printer = call.printer()?;
    let (sender, mut lines) = mpsc::channel(REQUESTS);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    let mut streams: Vec<mpsc::Sender<()>> = Vec::new();
    let tasks = tokio::task::LocalSet::new();
    tasks
        .run_until(async {
            loop {
                let line = match lines.recv().await {
                    Some(Ok(line)) => line,
                    None => {
                        return Err(Failure::new(3, "Error reading watch request line: EOF"));
                    }
                    Some(Err(err)) => {
                        let text = format!("Error reading watch request line: {err}");
                        return Err(Failure::new(3, text));
                    }
                };
                let words = split(&line).unwrap_or_default();
                match words.split_first() {
                    Some((verb, words)) if verb == "watch" => {
                        let read = Given::read(&[WATCH], words, Until::End, |_| None)
                            .map_err(Failure::bad_arguments)?;
                        let watched = match watched(&read, key, range_end) {
                            Ok(watched) => watched,
                            Err(err) => {
                                eprintln!("Invalid command {line} ({})", err.message);
                                continue;
                            }
                        };
                        let (sender, progress) = mpsc::channel(1);
                        streams.push(sender);
                        let call = call.clone();
                        tokio::task::spawn_local(async move {
                            if let Err(err) = follow(&call, watched, printer, progress).await {
                                eprintln!("Error: {}", err.message);
                            }
                        });
                    }
                    Some((verb, _)) if verb == "progress" => {
                        for stream in &streams {
                            let _ = stream.send(()).await;
                        }
                    }
                    Some(_) => eprintln!("Invalid command {line} (only support watch)"),
                    None => eprintln!("Invalid command: {line} (watch and progress supported)"),
                }
            }
        })
        .await
}

/// Prints what happens until the server cancels the watch. A connection that breaks is made again, where it broke off.
async fn follow(
    call: &Call,
    mut watched: Watched,
    printer: Printer,
    mut progress: mpsc::Receiver<()>,
) -> Outcome {
    loop {
        let channel = call.client.patient_channel().await;
        let mut client = WatchClient::new(channel).max_decoding_message_size(usize::MAX);
        let (questions, requests) = mpsc::channel(REQUESTS);
        let ask = |union| pb::WatchRequest {
            request_union: Some(union),
        };
        let create = ask(RequestUnion::CreateRequest(watched.create.clone()));
        // There is room for it, and the receiver is here.
        let _ = questions.send(create).await;
        let mut request = Request::new(ReceiverStream::new(requests));
        let leader = MetadataValue::from_static("true");
        request.metadata_mut().insert("hasleader", leader);
        let mut answers = match client.watch(request).await {
            Ok(answers) => answers.into_inner(),
            Err(status) if status.code() == Code::Unavailable => continue,
            Err(status) => return Err(Failure::new(1, text_of(&status))),
        };
        loop {
            let answer = tokio::select! {
                answer = answers.message() => answer,
                Some(()) = progress.recv() => {
                    let asked = ask(RequestUnion::ProgressRequest(pb::WatchProgressRequest {}));
                    let _ = questions.send(asked).await;
                    continue;
                }
            };
            let answer = match answer {
                Ok(Some(answer)) => answer,
                Ok(None) => break,
                Err(status) if matches!(status.code(), Code::Unavailable | Code::Unknown) => break,
                Err(status) => {
                    eprintln!("watch was canceled ({})", text_of(&status));
                    return Ok(());
                }
            };
            if answer.created && !answer.canceled {
                continue;
            }
            if answer.canceled {
                eprintln!("watch was canceled ({})", reason(&answer));
            } else if answer.events.is_empty() {
                let revision = answer.header.unwrap_or_default().revision;
                say(format!("progress notify: {revision}\n"));
            }
            printer.show(printer.watch(&answer))?;
            if answer.canceled {
                return Ok(());
            }
            run_for(&watched.program, &answer)?;
            if let Some(kv) = answer.events.last().and_then(|e| e.kv.as_ref()) {
                watched.create.start_revision = kv.mod_revision + 1;
            }
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

fn reason(answer: &pb::WatchResponse) -> String {
    match answer.cancel_reason.as_str() {
        _ if answer.compact_revision != 0 => {
            "etcdserver: mvcc: required revision has been compacted".into()
        }
        "" => "etcdserver: mvcc: required revision is a future revision".into(),
        reason => reason.to_owned(),
    }
}

/// Runs a program for each event, and waits for it.
fn run_for(program: &[String], answer: &pb::WatchResponse) -> Outcome {
    let Some((path, words)) = program.split_first() else {
        return Ok(());
    };
    let revision = answer.header.unwrap_or_default().revision;
    for event in &answer.events {
        let kv = event.kv.clone().unwrap_or_default();
        let status = Command::new(path)
            .args(words)
            .env("ETCD_WATCH_REVISION", revision.to_string())
            .env(
                "ETCD_WATCH_EVENT_TYPE",
                format!("\"{}\"", event_name(event)),
            )
            .env("ETCD_WATCH_KEY", quoted(&kv.key))
            .env("ETCD_WATCH_VALUE", quoted(&kv.value))
            .stdin(Stdio::null())
            .status();
        let failed = match status {
            Ok(status) if status.success() => continue,
            Ok(status) => status.to_string(),
            Err(err) => err.to_string(),
        };
        let words = program.join(" ");
        return Err(Failure::plain(
            1,
            format!("command [{words}] error ({failed})"),
        ));
    }
    Ok(())
}
