//! `[Socket]` (`systemd.socket(5)`).

use std::time::Duration;

use super::confinement::plain_path;
use super::service::{account, mode, word};
use super::{Directive, Draft, Reading, exec, refused, set, silent};
use crate::name::UnitType;
use crate::problem::Severity;
use crate::socket::{
    Address, BindIpv6Only, DEFAULT_BACKLOG, Listen, SocketProtocol, parse_address,
};
use crate::syntax::Assignment;
use crate::value::{parse_bool, parse_bytes};

/// `Listen…=`; an empty one takes away all of every kind.
fn listen(
    draft: &mut Draft,
    a: &Assignment<'_>,
    reading: &mut Reading<'_>,
    expected: &str,
    parse: impl FnOnce(&str) -> Option<Listen>,
) {
    if a.value.text.is_empty() {
        draft.socket().listen.clear();
        return;
    }
    let Some(text) = reading.text(a, Severity::Warning) else {
        return;
    };
    match parse(&text) {
        Some(listen) => draft.socket().listen.push(listen),
        None => reading.ignore(a, 0, &format!("{text:?} is not {expected}")),
    }
}

const ADDRESS: &str = "a port, an address with a port, a path or @NAME";

fn local_address(text: &str) -> Option<Listen> {
    let address = parse_address(text)?;
    matches!(address, Address::Path(_) | Address::Abstract(_))
        .then_some(Listen::SequentialPacket(address))
}

/// `FAMILY [GROUP]`
fn netlink(text: &str) -> Option<Listen> {
    let mut words = text.split_whitespace();
    let family = words.next()?.to_owned();
    let group = words.next().map_or(Some(0), |group| group.parse().ok())?;
    words
        .next()
        .is_none()
        .then_some(Listen::Netlink { family, group })
}

pub(super) fn descriptor_name(text: &str) -> Option<String> {
    let good = text.len() <= 255 && text.bytes().all(|b| (b' '..0x7f).contains(&b) && b != b':');
    good.then(|| text.to_owned())
}

fn bytes(slot: &mut Option<u64>, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    reading.option(a, slot, "a number of bytes", parse_bytes);
}

fn number<T: std::str::FromStr>(
    slot: &mut Option<T>,
    a: &Assignment<'_>,
    reading: &mut Reading<'_>,
) {
    reading.option(a, slot, "a number", |t| t.parse().ok());
}

fn span(slot: &mut Option<Duration>, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    let mut parsed = None;
    reading.span(a, &mut parsed);
    *slot = parsed.and_then(crate::value::Span::timeout);
}

/// The type of service, or a number.
fn ip_tos(text: &str) -> Option<u8> {
    let words = [
        ("low-delay", 0x10),
        ("throughput", 0x08),
        ("reliability", 0x04),
        ("low-cost", 0x02),
    ];
    word(text, &words).or_else(|| text.parse().ok())
}

fn service(draft: &mut Draft, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    if a.value.text.is_empty() {
        draft.triggered = None;
        return;
    }
    match reading.unit_name(a, &a.value.text, 0) {
        Some(name) if name.kind() == UnitType::Service => draft.triggered = Some(name),
        Some(name) => reading.ignore(a, 0, &format!("{name} is no service")),
        None => {}
    }
}

fn symlinks(draft: &mut Draft, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    if a.value.text.is_empty() {
        draft.socket().symlinks.clear();
    }
    for word in reading.words(a, Severity::Warning).unwrap_or_default() {
        match plain_path(&word.text) {
            Some(path) => draft.socket().symlinks.push(path),
            None => {
                let message = format!("{:?} is not a plain absolute path", word.text);
                reading.ignore(a, word.offset, &message);
            }
        }
    }
}

/// A row for a boolean.
macro_rules! flag {
    ($name:literal, $field:ident) => {
        set($name, |d, a, r| r.bool(a, &mut d.socket().$field, false))
    };
}

#[rustfmt::skip]
pub(super) static SOCKET: &[Directive] = &[
    flag!("Accept", accept),
    set("Backlog", |d, a, r| {
        r.value(a, &mut d.socket().backlog, DEFAULT_BACKLOG, "a number", |t| t.parse().ok());
    }),
    set("BindIPv6Only", |d, a, r| {
        let words = [
            ("default", BindIpv6Only::Default), ("both", BindIpv6Only::Both), ("ipv6-only", BindIpv6Only::Ipv6Only),
        ];
        r.value(a, &mut d.socket().bind_ipv6_only, BindIpv6Only::Default, "one of default both ipv6-only",
            |t| word(t, &words));
    }),
    set("BindToDevice", |d, a, r| {
        r.option(a, &mut d.socket().bind_to_device, "the name of a link", |t| {
            let good = t.len() < 16 && t.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
            (t != "*").then(|| good.then(|| t.to_owned())).flatten()
        });
    }),
    flag!("Broadcast", broadcast),
    set("DeferAcceptSec", |d, a, r| span(&mut d.socket().defer_accept, a, r)),
    set("DirectoryMode", |d, a, r| mode(&mut d.socket().directory_mode, 0o755, a, r)),
    set("ExecStartPost", |d, a, r| exec::commands(&mut d.service.exec_start_post, a, r)),
    set("ExecStartPre", |d, a, r| exec::commands(&mut d.service.exec_start_pre, a, r)),
    set("ExecStopPost", |d, a, r| exec::commands(&mut d.service.exec_stop_post, a, r)),
    set("ExecStopPre", |d, a, r| exec::commands(&mut d.socket().exec_stop_pre, a, r)),
    set("FileDescriptorName", |d, a, r| {
        r.value(a, &mut d.socket().descriptor_name, String::new(), "a name without colons", descriptor_name);
    }),
    flag!("FlushPending", flush_pending),
    flag!("FreeBind", free_bind),
    set("IPTOS", |d, a, r| r.option(a, &mut d.socket().ip_tos, "a type of service or a number", ip_tos)),
    set("IPTTL", |d, a, r| number(&mut d.socket().ip_ttl, a, r)),
    flag!("KeepAlive", keep_alive),
    set("KeepAliveIntervalSec", |d, a, r| span(&mut d.socket().keep_alive_interval, a, r)),
    set("KeepAliveProbes", |d, a, r| number(&mut d.socket().keep_alive_probes, a, r)),
    set("KeepAliveTimeSec", |d, a, r| span(&mut d.socket().keep_alive_time, a, r)),
    set("ListenDatagram", |d, a, r| listen(d, a, r, ADDRESS, |t| parse_address(t).map(Listen::Datagram))),
    set("ListenFIFO", |d, a, r| listen(d, a, r, "a plain absolute path", |t| plain_path(t).map(Listen::Fifo))),
    refused("ListenMessageQueue", "POSIX message queues"),
    set("ListenNetlink", |d, a, r| listen(d, a, r, "FAMILY and perhaps a group", netlink)),
    set("ListenSequentialPacket", |d, a, r| listen(d, a, r, "a path or @NAME", local_address)),
    set("ListenSpecial", |d, a, r| listen(d, a, r, "a plain absolute path", |t| plain_path(t).map(Listen::Special))),
    set("ListenStream", |d, a, r| listen(d, a, r, ADDRESS, |t| parse_address(t).map(Listen::Stream))),
    refused("ListenUSBFunction", "USB functions"),
    set("Mark", |d, a, r| number(&mut d.socket().mark, a, r)),
    set("MaxConnections", |d, a, r| {
        r.value(a, &mut d.socket().max_connections, 64, "a number", |t| t.parse().ok());
    }),
    set("MaxConnectionsPerSource", |d, a, r| number(&mut d.socket().max_connections_per_source, a, r)),
    refused("MessageQueueMaxMessages", "POSIX message queues"),
    refused("MessageQueueMessageSize", "POSIX message queues"),
    flag!("NoDelay", no_delay),
    flag!("PassCredentials", pass_credentials),
    flag!("PassPacketInfo", pass_packet_info),
    flag!("PassSecurity", pass_security),
    set("PipeSize", |d, a, r| bytes(&mut d.socket().pipe_size, a, r)),
    set("Priority", |d, a, r| number(&mut d.socket().priority, a, r)),
    set("ReceiveBuffer", |d, a, r| bytes(&mut d.socket().receive_buffer, a, r)),
    flag!("RemoveOnStop", remove_on_stop),
    flag!("ReusePort", reuse_port),
    refused("SELinuxContextFromNet", "SELinux"),
    set("SendBuffer", |d, a, r| bytes(&mut d.socket().send_buffer, a, r)),
    set("Service", service),
    refused("SmackLabel", "Smack"),
    refused("SmackLabelIPIn", "Smack"),
    refused("SmackLabelIPOut", "Smack"),
    set("SocketGroup", |d, a, r| account(&mut d.socket().group, a, r)),
    set("SocketMode", |d, a, r| mode(&mut d.socket().mode, 0o666, a, r)),
    set("SocketProtocol", |d, a, r| {
        let words = [
            ("udplite", SocketProtocol::UdpLite), ("sctp", SocketProtocol::Sctp), ("mptcp", SocketProtocol::Mptcp),
        ];
        r.option(a, &mut d.socket().protocol, "one of udplite sctp mptcp", |t| word(t, &words));
    }),
    set("SocketUser", |d, a, r| account(&mut d.socket().user, a, r)),
    set("Symlinks", symlinks),
    set("TCPCongestion", |d, a, r| {
        r.option(a, &mut d.socket().tcp_congestion, "a name", |t| Some(t.to_owned()));
    }),
    set("TimeoutSec", |d, a, r| r.span(a, &mut d.written.timeout_start)),
    silent("Timestamping"),
    flag!("Transparent", transparent),
    set("TriggerLimitBurst", |d, a, r| number(&mut d.written.trigger_limit_burst, a, r)),
    set("TriggerLimitIntervalSec", |d, a, r| {
        r.duration(a, &mut d.socket().trigger_limit_interval, Duration::from_secs(2));
    }),
    set("Writable", |d, a, r| {
        r.value(a, &mut d.socket().writable, false, "a boolean", parse_bool);
    }),
];
