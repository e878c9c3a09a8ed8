//! The part of nf_tables' netlink language that our rules are written in.
//!
//! Names and numbers are those of `include/uapi/linux/netfilter/nf_tables.h`; nf_tables numbers are in network order. What each function builds is
//! what `nft --debug=netlink` prints for the rule beside it in `rules.rs`.

use super::wire::{Message, Received, attributes};
use super::{Error, NFTABLES, Socket};

/// `NFPROTO_IPV4`: tables of the family `ip`.
const FAMILY_IPV4: u8 = 2;

const NEWTABLE: u16 = 0;
const GETTABLE: u16 = 1;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const NEWRULE: u16 = 6;
const NEWSET: u16 = 9;
const NEWSETELEM: u16 = 12;
const DELSETELEM: u16 = 14;

/// `NFTA_LIST_ELEM`.
const LIST_ELEMENT: u16 = 1;
/// `NFTA_DATA_VALUE` and `NFTA_DATA_VERDICT`.
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
/// `NFT_SET_MAP`.
const SET_IS_MAP: u32 = 8;
/// `NFT_REG_1`: the first 16 bytes of the registers that expressions work in.
const REGISTER: u32 = 1;
/// `NFT_REG32_01` and `NFT_REG32_02`: the second and third four bytes of the same 16.
const SECOND_WORD: u32 = 9;
const THIRD_WORD: u32 = 10;
/// `IFNAMSIZ`.
const NAME_BYTES: usize = 16;

/// nft's own type numbers (`enum datatypes` in nft's `include/datatype.h`), six bits each in a concatenation; the kernel only keeps them.
const TYPE_ADDRESS: u32 = 7;
const TYPE_PROTOCOL: u32 = 12;
const TYPE_PORT: u32 = 13;

fn message(kind: u16, flags: i32) -> Message {
    // struct nfgenmsg { family: u8, version: u8, res_id: u16 }
    Message::new((NFTABLES << 8) | kind, flags as u16).raw(&[FAMILY_IPV4, 0, 0, 0])
}

/// nft's note on an object: type 0 (comment), length, text, NUL (libnftnl's `udata.h`).
fn comment(text: &str) -> Vec<u8> {
    let text = &text.as_bytes()[..text.len().min(127)];
    let mut bytes = vec![0, text.len() as u8 + 1];
    bytes.extend_from_slice(text);
    bytes.push(0);
    bytes
}

/// Makes a table, with a comment.
pub(crate) fn new_table(table: &str, note: &str) -> Message {
    message(NEWTABLE, libc::NLM_F_CREATE)
        .string(1, table)
        .bytes(6, &comment(note))
}

/// Takes a table and all that is in it away.
pub(crate) fn delete_table(table: &str) -> Message {
    message(DELTABLE, 0).string(1, table)
}

/// Whether the table exists and has this comment.
pub(crate) fn has_table(socket: &mut Socket, table: &str, note: &str) -> Result<bool, Error> {
    let found = socket.get(
        message(GETTABLE, 0).string(1, table),
        |answer: Received<'_>| {
            let user_data = attributes(answer.payload.get(4..)?).find(|(kind, _)| *kind == 6);
            Some(user_data.is_some_and(|(_, value)| value == comment(note)))
        },
    )?;
    Ok(found.unwrap_or(false))
}

/// Where a base chain sits in the path of a packet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hook {
    /// `filter` or `nat`.
    pub(crate) chain_type: &'static str,
    /// `NF_INET_*` of `include/uapi/linux/netfilter.h`.
    pub(crate) number: u32,
    /// Lower ones come first (`NF_IP_PRI_*` of `netfilter_ipv4.h`).
    pub(crate) priority: i32,
}

/// Makes a chain; without a hook it is one to jump to.
pub(crate) fn new_chain(table: &str, chain: &str, hook: Option<Hook>) -> Message {
    message(NEWCHAIN, libc::NLM_F_CREATE)
        .string(1, table)
        .string(3, chain)
        .maybe(hook, |m, hook| {
            m.nest(4, |m| {
                m.u32_be(1, hook.number)
                    .u32_be(2, hook.priority.cast_unsigned())
            })
            .string(7, hook.chain_type)
        })
}

/// What a map's keys are; values are always an address and a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    /// Protocol and port.
    Port,
    /// Address, protocol and port.
    AddressAndPort,
}

/// Makes a map. `id` tells it from others of the same batch.
pub(crate) fn new_map(table: &str, map: &str, id: u32, key: Key) -> Message {
    let port = (TYPE_PROTOCOL << 6) | TYPE_PORT;
    let (key_type, key_bytes) = match key {
        Key::Port => (port, 8),
        Key::AddressAndPort => ((TYPE_ADDRESS << 12) | port, 12),
    };
    message(NEWSET, libc::NLM_F_CREATE)
        .string(1, table)
        .string(2, map)
        .u32_be(3, SET_IS_MAP)
        .u32_be(4, key_type)
        .u32_be(5, key_bytes)
        .u32_be(6, (TYPE_ADDRESS << 6) | TYPE_PORT)
        .u32_be(7, 8)
        .u32_be(10, id)
}

/// An element of a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Element {
    /// The key's words.
    pub(crate) key: Vec<u8>,
    /// The value's words.
    pub(crate) value: Vec<u8>,
    /// What `nft list ruleset` shows beside it.
    pub(crate) note: String,
}

fn elements(kind: u16, flags: i32, table: &str, map: &str, all: &[Element]) -> Message {
    message(kind, flags)
        .string(1, table)
        .string(2, map)
        .nest(3, |mut m| {
            for element in all {
                m = m.nest(LIST_ELEMENT, |m| {
                    let m = m.nest(1, |m| m.bytes(DATA_VALUE, &element.key));
                    if kind == DELSETELEM {
                        return m;
                    }
                    m.nest(2, |m| m.bytes(DATA_VALUE, &element.value))
                        .bytes(6, &comment(&element.note))
                });
            }
            m
        })
}

/// Adds elements to a map.
pub(crate) fn add_elements(table: &str, map: &str, all: &[Element]) -> Message {
    elements(NEWSETELEM, libc::NLM_F_CREATE, table, map, all)
}

/// Takes elements from a map; one that is not there fails the batch.
pub(crate) fn delete_elements(table: &str, map: &str, all: &[Element]) -> Message {
    elements(DELSETELEM, 0, table, map, all)
}

/// A rule under construction: expressions in the order in which the kernel runs them. One that does not match ends the rule.
#[derive(Debug)]
pub(crate) struct Rule {
    expressions: Vec<Message>,
}

impl Rule {
    /// A rule without conditions.
    pub(crate) fn new() -> Self {
        Self {
            expressions: Vec::new(),
        }
    }

    /// Appended to the end of a chain.
    pub(crate) fn in_chain(self, table: &str, chain: &str) -> Message {
        message(NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND)
            .string(1, table)
            .string(2, chain)
            .nest(4, |m| {
                self.expressions.into_iter().fold(m, |m, expression| {
                    m.nest(LIST_ELEMENT, |m| m.body_of(&expression))
                })
            })
    }

    fn expression(mut self, name: &str, fill: impl FnOnce(Message) -> Message) -> Self {
        self.expressions
            .push(Message::new(0, 0).string(1, name).nest(2, fill));
        self
    }

    fn compare(self, operation: u32, value: &[u8]) -> Self {
        self.expression("cmp", |m| {
            m.u32_be(1, REGISTER)
                .u32_be(2, operation)
                .nest(3, |m| m.bytes(DATA_VALUE, value))
        })
    }

    fn equal(self, value: &[u8]) -> Self {
        self.compare(0, value)
    }

    fn meta(self, key: u32, register: u32) -> Self {
        self.expression("meta", |m| m.u32_be(1, register).u32_be(2, key))
    }

    /// Loads bytes of the header of a layer: 1 network, 2 transport.
    fn payload(self, layer: u32, offset: u32, len: u32, register: u32) -> Self {
        self.expression("payload", |m| {
            m.u32_be(1, register)
                .u32_be(2, layer)
                .u32_be(3, offset)
                .u32_be(4, len)
        })
    }

    fn interface(self, key: u32, operation: u32, name: &str) -> Self {
        let mut padded = [0u8; NAME_BYTES];
        let len = name.len().min(NAME_BYTES - 1);
        padded[..len].copy_from_slice(&name.as_bytes()[..len]);
        self.meta(key, REGISTER).compare(operation, &padded)
    }

    /// `iifname NAME`.
    pub(crate) fn comes_in_by(self, name: &str) -> Self {
        self.interface(6, 0, name)
    }

    /// `oifname NAME`.
    pub(crate) fn goes_out_by(self, name: &str) -> Self {
        self.interface(7, 0, name)
    }

    /// `oifname != NAME`.
    pub(crate) fn goes_out_elsewhere_than(self, name: &str) -> Self {
        self.interface(7, 1, name)
    }

    fn network(self, offset: u32, network: std::net::Ipv4Addr, prefix: u8) -> Self {
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        let network = u32::from(network) & mask;
        self.payload(1, offset, 4, REGISTER)
            .masked(&mask.to_be_bytes())
            .equal(&network.to_be_bytes())
    }

    /// `ip saddr NETWORK/PREFIX`.
    pub(crate) fn from(self, network: std::net::Ipv4Addr, prefix: u8) -> Self {
        self.network(12, network, prefix)
    }

    /// `ip daddr NETWORK/PREFIX`.
    pub(crate) fn to(self, network: std::net::Ipv4Addr, prefix: u8) -> Self {
        self.network(16, network, prefix)
    }

    fn masked(self, mask: &[u8]) -> Self {
        let zeros = vec![0; mask.len()];
        self.expression("bitwise", |m| {
            m.u32_be(1, REGISTER)
                .u32_be(2, REGISTER)
                .u32_be(3, mask.len() as u32)
                .nest(4, |m| m.bytes(DATA_VALUE, mask))
                .nest(5, |m| m.bytes(DATA_VALUE, &zeros))
        })
    }

    /// A conntrack key has one of some bits; conntrack's values are in host order.
    fn conntrack(self, key: u32, bits: u32) -> Self {
        self.expression("ct", |m| m.u32_be(1, REGISTER).u32_be(2, key))
            .masked(&bits.to_ne_bytes())
            .compare(1, &[0; 4])
    }

    /// `ct state established,related`: `NF_CT_STATE_BIT(IP_CT_ESTABLISHED)`, `…(IP_CT_RELATED)`.
    pub(crate) fn established(self) -> Self {
        self.conntrack(0, 0b110)
    }

    /// `ct status dnat`: `IPS_DST_NAT` of `nf_conntrack_common.h`.
    pub(crate) fn was_redirected(self) -> Self {
        self.conntrack(2, 1 << 5)
    }

    /// `fib daddr type local`: `NFT_FIB_RESULT_ADDRTYPE` of `NFTA_FIB_F_DADDR` is `RTN_LOCAL`.
    pub(crate) fn for_this_machine(self) -> Self {
        self.expression("fib", |m| m.u32_be(1, REGISTER).u32_be(2, 3).u32_be(3, 2))
            .equal(&2u32.to_ne_bytes())
    }

    fn ends_with(self, code: i32, chain: Option<&str>) -> Self {
        self.expression("immediate", |m| {
            m.u32_be(1, 0).nest(2, |m| {
                m.nest(DATA_VERDICT, |m| {
                    m.u32_be(1, code.cast_unsigned())
                        .maybe(chain, |m, chain| m.string(2, chain))
                })
            })
        })
    }

    /// `accept` (`NF_ACCEPT`).
    pub(crate) fn accept(self) -> Self {
        self.ends_with(1, None)
    }

    /// `drop` (`NF_DROP`).
    pub(crate) fn discard(self) -> Self {
        self.ends_with(0, None)
    }

    /// `jump CHAIN` (`NFT_JUMP`).
    pub(crate) fn jump(self, chain: &str) -> Self {
        self.ends_with(-3, Some(chain))
    }

    /// `masquerade`.
    pub(crate) fn masquerade(self) -> Self {
        self.expression("masq", |m| m)
    }

    /// `dnat ip to … map @MAP`: a packet whose key is not in the map goes on to the next rule.
    pub(crate) fn redirect_by(self, map: &str, key: Key) -> Self {
        let loaded = match key {
            Key::Port => self.meta(16, REGISTER).payload(2, 2, 2, SECOND_WORD),
            Key::AddressAndPort => self
                .payload(1, 16, 4, REGISTER)
                .meta(16, SECOND_WORD)
                .payload(2, 2, 2, THIRD_WORD),
        };
        loaded
            .expression("lookup", |m| {
                m.string(1, map).u32_be(2, REGISTER).u32_be(3, REGISTER)
            })
            // NFT_NAT_DNAT; the value's first word is the address, its second the port.
            .expression("nat", |m| {
                m.u32_be(1, 1)
                    .u32_be(2, u32::from(FAMILY_IPV4))
                    .u32_be(3, REGISTER)
                    .u32_be(5, SECOND_WORD)
            })
    }
}

/// A key or value: words of four bytes, each filled from its start.
pub(crate) fn words(parts: &[&[u8]]) -> Vec<u8> {
    parts
        .iter()
        .flat_map(|part| {
            let mut word = [0u8; 4];
            word[..part.len().min(4)].copy_from_slice(&part[..part.len().min(4)]);
            word
        })
        .collect()
}
