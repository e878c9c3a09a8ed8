//! `snapshot save|status|restore`.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use orlop_store::proto::etcdserverpb as pb;
use orlop_store::snapshot::{Restore, restore as restore_state, status as status_of};
use pb::maintenance_client::MaintenanceClient;

use super::channel::text_of;
use super::flags::Flag;
use super::members::lines;
use super::print::{Page, say};
use super::text::{Json, bytes_for_reading};
use super::{Call, Failure, Outcome};

pub(super) const RESTORE: &[Flag] = &[
    Flag::value("data-dir", "", "the directory that is made (NAME.etcd)"),
    Flag::value("name", "default", "name of this member"),
    Flag::value(
        "initial-cluster",
        "default=http://localhost:2380",
        "the first members of the new cluster, NAME=URL",
    ),
    Flag::value(
        "initial-advertise-peer-urls",
        "http://localhost:2380",
        "where other members reach this one",
    ),
    Flag::value(
        "initial-cluster-token",
        "etcd-cluster",
        "tells clusters of the same first members apart",
    ),
    Flag::value("bump-revision", "0", "raise the revision by so much"),
    Flag::switch(
        "mark-compacted",
        "revisions up to the one it begins with cannot be read",
    ),
    Flag::value("wal-dir", "", "not supported: one directory holds all"),
    Flag::switch("skip-hash-check", "not supported"),
];

fn path(call: &Call, what: &str) -> Result<PathBuf, Failure> {
    match call.given.words.as_slice() {
        [path] => Ok(PathBuf::from(path)),
        _ => Err(Failure::bad_arguments(what)),
    }
}

fn failed(err: impl std::error::Error + Send + Sync + 'static) -> Failure {
    Failure::new(1, format!("{:#}", anyhow::Error::new(err)))
}

pub(super) fn save(call: &Call) -> Outcome {
    let path = path(call, "snapshot save expects one argument")?;
    let mut part = path.clone().into_os_string();
    part.push(".part");
    let part = PathBuf::from(part);
    let saved = call.run(async {
        let receive = receive(call, &part);
        // Without the flag it may take as long as it takes.
        match call.given.has("command-timeout") {
            false => receive.await,
            true => tokio::time::timeout(call.client.timeout, receive)
                .await
                .unwrap_or_else(|_| Err(Failure::new(5, "context deadline exceeded"))),
        }
    });
    let kept = saved.and_then(|()| keep(&part, &path));
    if kept.is_err() {
        // It may not have been made at all.
        let _ = std::fs::remove_file(&part);
    }
    kept?;
    say(format!("Snapshot saved at {}\n", path.display()));
    Ok(())
}

async fn receive(call: &Call, part: &Path) -> Outcome {
    let file_failed = |err| Failure::new(5, format!("write {}: {err}", part.display()));
    let said = |status: tonic::Status| Failure::new(5, text_of(&status));
    let mut last = String::new();
    let dialled = call.client.channel(|why| last = why);
    let channel = tokio::time::timeout(call.client.timeout, dialled).await;
    let channel = channel.map_err(|_| Failure::new(5, last))?;
    let mut client = MaintenanceClient::new(channel).max_decoding_message_size(usize::MAX);
    let request = pb::SnapshotRequest {};
    let mut parts = client.snapshot(request).await.map_err(said)?.into_inner();
    let mut file = File::create(part).map_err(file_failed)?;
    while let Some(answer) = parts.message().await.map_err(said)? {
        file.write_all(&answer.blob).map_err(file_failed)?;
    }
    file.sync_all().map_err(file_failed)
}

/// Looks through what came, and gives it its name.
fn keep(part: &Path, path: &Path) -> Outcome {
    match status_of(part) {
        // etcd's own has another form, which only etcd's tools read.
        Ok(_) | Err(orlop_store::snapshot::SnapshotError::Foreign(_)) => {}
        Err(err) => return Err(Failure::new(5, failed(err).message)),
    }
    let renamed = std::fs::rename(part, path).and_then(|()| {
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    });
    renamed.map_err(|err| Failure::new(6, format!("name {}: {err}", path.display())))
}

pub(super) fn status(call: &Call) -> Outcome {
    let path = path(call, "snapshot status requires exactly one argument")?;
    let s = status_of(&path).map_err(failed)?;
    let row = vec![
        format!("{:x}", s.hash),
        s.revision.to_string(),
        s.total_keys.to_string(),
        bytes_for_reading(s.total_bytes),
    ];
    call.printer()?.show(Page {
        simple: lines(std::slice::from_ref(&row)).into(),
        fields: Some(format!(
            "\"Hash\" : {}\n\"Revision\" : {}\n\"Keys\" : {}\n\"Size\" : {}\n",
            s.hash, s.revision, s.total_keys, s.total_bytes
        )),
        json: Some(Json::Object(vec![
            ("hash", Json::Number(s.hash.into())),
            ("revision", Json::Number(s.revision.into())),
            ("totalKey", Json::Number(s.total_keys.into())),
            ("totalSize", Json::Number(s.total_bytes.into())),
        ])),
        table: Some((&["hash", "revision", "total keys", "total size"], vec![row])),
    })
}

pub(super) fn restore(call: &Call) -> Outcome {
    let path = path(call, "snapshot restore requires exactly one argument")?;
    let given = &call.given;
    for name in ["wal-dir", "skip-hash-check"] {
        if given.has(name) {
            return Err(Failure::bad_arguments(format!("--{name} is not supported")));
        }
    }
    let name = given.get("name").to_owned();
    let data_dir = match given.get("data-dir") {
        "" => format!("{name}.etcd"),
        data_dir => data_dir.to_owned(),
    };
    let list = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<String>>();
    let mut members: Vec<(String, Vec<String>)> = Vec::new();
    for word in list(given.get("initial-cluster")) {
        let Some((name, url)) = word.split_once('=') else {
            return Err(Failure::bad_arguments(format!(
                "--initial-cluster: {word:?} is not NAME=URL"
            )));
        };
        match members.iter_mut().find(|(n, _)| n == name) {
            Some((_, urls)) => urls.push(url.to_owned()),
            None => members.push((name.to_owned(), vec![url.to_owned()])),
        }
    }
    let bump_revision = given.number("bump-revision")?;
    if bump_revision < 0 {
        return Err(Failure::bad_arguments(
            "--bump-revision must not be negative",
        ));
    }
    let owner = restore_state(
        &path,
        &Restore {
            data_dir: PathBuf::from(&data_dir),
            name,
            peer_urls: list(given.get("initial-advertise-peer-urls")),
            members,
            token: given.get("initial-cluster-token").to_owned(),
            bump_revision,
            mark_compacted: given.is_set("mark-compacted"),
        },
    )
    .map_err(failed)?;
    eprintln!(
        "restored {} to {data_dir}: member {:x} of the new cluster {:x}",
        path.display(),
        owner.member,
        owner.cluster
    );
    Ok(())
}
