//! What came of a command, in the form that was asked for.

use std::io::Write as _;

use orlop_store::proto::etcdserverpb as pb;
use orlop_store::proto::mvccpb::{Event, KeyValue, event::EventType};
use pb::response_op::Response;

use super::Failure;
use super::text::{Json, quoted, table};

/// A form of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Simple,
    Json,
    Fields,
    Table,
}

/// How answers are printed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Printer {
    pub(super) format: Format,
    /// Keys and values as hexadecimal digits.
    pub(super) hex: bool,
    pub(super) value_only: bool,
}

/// An answer in all the forms that it has.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) simple: Vec<u8>,
    pub(super) json: Option<Json>,
    pub(super) fields: Option<String>,
    pub(super) table: Option<(&'static [&'static str], Vec<Vec<String>>)>,
}

/// Writes to standard output. Whoever reads it may have left: then there is nothing more to do.
pub(super) fn say(text: impl AsRef<[u8]>) {
    let mut out = std::io::stdout().lock();
    if out
        .write_all(text.as_ref())
        .and_then(|()| out.flush())
        .is_err()
    {
        std::process::exit(1);
    }
}

impl Printer {
    pub(super) fn show(&self, page: Page) -> Result<(), Failure> {
        let missing = |name| Failure::new(4, format!("{name} not supported as output format"));
        match self.format {
            Format::Simple => say(page.simple),
            Format::Json => say(page.json.ok_or_else(|| missing("json"))?.text() + "\n"),
            Format::Fields => say(page.fields.ok_or_else(|| missing("fields"))?),
            Format::Table => {
                let (titles, rows) = page.table.ok_or_else(|| missing("table"))?;
                say(table(titles, &rows));
            }
        }
        Ok(())
    }

    fn key_value(&self, kv: &KeyValue, out: &mut Vec<u8>) {
        let mut line = |bytes: &[u8]| {
            if self.hex {
                for byte in bytes {
                    out.extend_from_slice(format!("\\x{byte:02x}").as_bytes());
                }
            } else {
                out.extend_from_slice(bytes);
            }
            out.push(b'\n');
        };
        if !self.value_only {
            line(&kv.key);
        }
        line(&kv.value);
    }

    fn key_values(&self, kvs: &[KeyValue], out: &mut Vec<u8>) {
        for kv in kvs {
            self.key_value(kv, out);
        }
    }

    pub(super) fn get(&self, r: &pb::RangeResponse) -> Page {
        let mut simple = Vec::new();
        self.key_values(&r.kvs, &mut simple);
        let mut fields = header_fields(&r.header);
        for kv in &r.kvs {
            fields += &kv_fields("", kv);
        }
        fields += &format!("\"More\" : {}\n\"Count\" : {}\n", r.more, r.count);
        Page {
            simple,
            fields: Some(fields),
            json: Some(Json::sparse(vec![
                ("header", header(&r.header)),
                ("kvs", Json::List(r.kvs.iter().map(kv_json).collect())),
                ("more", Json::Bool(r.more)),
                ("count", Json::Number(r.count.into())),
            ])),
            table: None,
        }
    }

    pub(super) fn put(&self, r: &pb::PutResponse) -> Page {
        let mut simple = b"OK\n".to_vec();
        let mut fields = header_fields(&r.header);
        if let Some(kv) = &r.prev_kv {
            self.key_value(kv, &mut simple);
            fields += &kv_fields("Prev", kv);
        }
        Page {
            simple,
            fields: Some(fields),
            json: Some(Json::sparse(vec![
                ("header", header(&r.header)),
                ("prev_kv", r.prev_kv.as_ref().map_or(Json::Null, kv_json)),
            ])),
            table: None,
        }
    }

    pub(super) fn delete(&self, r: &pb::DeleteRangeResponse) -> Page {
        let mut simple = format!("{}\n", r.deleted).into_bytes();
        self.key_values(&r.prev_kvs, &mut simple);
        let mut fields = header_fields(&r.header) + &format!("\"Deleted\" : {}\n", r.deleted);
        for kv in &r.prev_kvs {
            fields += &kv_fields("Prev", kv);
        }
        Page {
            simple,
            fields: Some(fields),
            json: Some(Json::sparse(vec![
                ("header", header(&r.header)),
                ("deleted", Json::Number(r.deleted.into())),
                (
                    "prev_kvs",
                    Json::List(r.prev_kvs.iter().map(kv_json).collect()),
                ),
            ])),
            table: None,
        }
    }

    pub(super) fn txn(&self, r: &pb::TxnResponse) -> Page {
        let mut simple = if r.succeeded {
            b"SUCCESS\n".to_vec()
        } else {
            b"FAILURE\n".to_vec()
        };
        let mut fields = header_fields(&r.header) + &format!("\"Succeeded\" : {}\n", r.succeeded);
        let mut responses = Vec::new();
        for response in r.responses.iter().filter_map(|r| r.response.as_ref()) {
            let (name, page) = match response {
                Response::ResponseRange(r) => ("ResponseRange", self.get(r)),
                Response::ResponsePut(r) => ("ResponsePut", self.put(r)),
                Response::ResponseDeleteRange(r) => ("ResponseDeleteRange", self.delete(r)),
                Response::ResponseTxn(r) => ("ResponseTxn", self.txn(r)),
            };
            simple.push(b'\n');
            simple.extend(page.simple);
            fields += &page.fields.unwrap_or_default();
            let inner = Json::Object(vec![(name, page.json.unwrap_or(Json::Null))]);
            responses.push(Json::Object(vec![("Response", inner)]));
        }
        Page {
            simple,
            fields: Some(fields),
            json: Some(Json::sparse(vec![
                ("header", header(&r.header)),
                ("succeeded", Json::Bool(r.succeeded)),
                ("responses", Json::List(responses)),
            ])),
            table: None,
        }
    }

    pub(super) fn watch(&self, r: &pb::WatchResponse) -> Page {
        let mut simple = Vec::new();
        let mut fields = header_fields(&r.header);
        let mut events = Vec::new();
        for event in &r.events {
            let name = event_name(event);
            simple.extend_from_slice(format!("{name}\n").as_bytes());
            fields += &format!("\"Type\" : {name}\n");
            if let Some(kv) = &event.prev_kv {
                self.key_value(kv, &mut simple);
                fields += &kv_fields("Prev", kv);
            }
            if let Some(kv) = &event.kv {
                self.key_value(kv, &mut simple);
                fields += &kv_fields("", kv);
            }
            events.push(Json::sparse(vec![
                ("type", Json::Number(event.r#type.into())),
                ("kv", event.kv.as_ref().map_or(Json::Null, kv_json)),
                (
                    "prev_kv",
                    event.prev_kv.as_ref().map_or(Json::Null, kv_json),
                ),
            ]));
        }
        let events = match events.is_empty() {
            true => Json::Null,
            false => Json::List(events),
        };
        Page {
            simple,
            fields: Some(fields),
            json: Some(Json::Object(vec![
                ("Header", header(&r.header)),
                ("Events", events),
                ("CompactRevision", Json::Number(r.compact_revision.into())),
                ("Canceled", Json::Bool(r.canceled)),
                ("Created", Json::Bool(false)),
            ])),
            table: None,
        }
    }
}

pub(super) fn event_name(event: &Event) -> &'static str {
    match event.r#type() {
        EventType::Put => "PUT",
        EventType::Delete => "DELETE",
    }
}

/// The header's fields, as they stand in it or beside those of an answer.
pub(super) fn header(header: &Option<pb::ResponseHeader>) -> Json {
    header.as_ref().map_or(Json::Null, |h| {
        Json::sparse(vec![
            ("cluster_id", Json::Number(h.cluster_id.into())),
            ("member_id", Json::Number(h.member_id.into())),
            ("revision", Json::Number(h.revision.into())),
            ("raft_term", Json::Number(h.raft_term.into())),
        ])
    })
}

pub(super) fn header_fields(header: &Option<pb::ResponseHeader>) -> String {
    let h = header.unwrap_or_default();
    format!(
        "\"ClusterID\" : {}\n\"MemberID\" : {}\n\"Revision\" : {}\n\"RaftTerm\" : {}\n",
        h.cluster_id, h.member_id, h.revision, h.raft_term
    )
}

fn kv_json(kv: &KeyValue) -> Json {
    Json::sparse(vec![
        ("key", Json::bytes(&kv.key)),
        ("create_revision", Json::Number(kv.create_revision.into())),
        ("mod_revision", Json::Number(kv.mod_revision.into())),
        ("version", Json::Number(kv.version.into())),
        ("value", Json::bytes(&kv.value)),
        ("lease", Json::Number(kv.lease.into())),
    ])
}

fn kv_fields(prefix: &str, kv: &KeyValue) -> String {
    let (key, value) = (quoted(&kv.key), quoted(&kv.value));
    let (created, modified) = (kv.create_revision, kv.mod_revision);
    let (version, lease) = (kv.version, kv.lease);
    format!(
        "\"{prefix}Key\" : {key}\n\"{prefix}CreateRevision\" : {created}\n\"{prefix}ModRevision\" : {modified}\n\"{prefix}Version\" : {version}\n\"{prefix}Value\" : {value}\n\"{prefix}Lease\" : {lease}\n"
    )
}
