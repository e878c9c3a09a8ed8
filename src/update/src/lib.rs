//! Updates: slots, payloads, signatures, installation, factory reset.
//!
//! A version comes as a [`payload`], whose [`manifest`] is signed ([`signature`]). [`slots`] decides where it goes and whether it may, [`apply`]
//! writes it there, and [`install`] to a disk that has no slots yet; both write through [`storage`], so that tests can cut the power anywhere.
//! [`fetch`] and [`channel`] bring payloads from servers, [`pack`] makes them. [`reset`] wipes what is kept on `/var`.
//!
//! `docs/update-payload.md` and `docs/install.md` have the formats and the order of the writes.

pub mod apply;
pub mod channel;
pub mod dns;
pub mod fat;
pub mod fetch;
pub mod hex;
pub mod install;
pub mod live;
pub mod local;
pub mod manifest;
pub mod pack;
pub mod payload;
pub mod reset;
pub mod seed;
pub mod signature;
pub mod slots;
pub mod storage;
pub mod system;
pub mod url;
