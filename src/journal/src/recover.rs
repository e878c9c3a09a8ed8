//! Takes a journal up where an earlier writer left it, however it ended.

use std::fs::{File, OpenOptions};
use std::io;

use crate::entry::Id;
use crate::format::{self, HEADER_BYTES, Header, RECORD_HEAD_BYTES};
use crate::scan::{self, Scanner, Step};
use crate::segments::{self, SegmentFile};
use crate::store::{Active, Error};

/// What the segments of an earlier writer tell the next one.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Above every number in use.
    pub(crate) next_sequence: u64,
    /// The highest kernel sequence that is stored of this boot.
    pub(crate) kernel_sequence: Option<u64>,
    /// The id of the newest readable segment's journal.
    pub(crate) journal: Option<Id>,
    /// The newest segment, if records of this boot may be appended to it.
    pub(crate) active: Option<Active>,
}

/// What a segment holds.
struct Survey {
    file: File,
    header: Header,
    last_sequence: Option<u64>,
    kernel_sequence: Option<u64>,
    damaged: bool,
    /// Where the last valid record ends.
    end: u64,
}

/// Reads the last segments: where to go on, after cutting a torn tail. A segment that cannot be read is left alone: it must
/// not keep new entries from being written.
pub(crate) fn recover(mut files: Vec<SegmentFile>, boot: Id) -> Result<Found, Error> {
    let mut found = Found {
        next_sequence: 1,
        ..Found::default()
    };
    while let Some(newest) = files.pop() {
        if take_over(newest, boot, &mut found)? {
            break;
        }
    }
    // The newest may be all output of units; the kernel's last message is then further back.
    while let Some(older) = files.pop() {
        if found.journal.is_some() && found.kernel_sequence.is_some() {
            break;
        }
        let Ok(Some(survey)) = survey(&older, false) else {
            continue;
        };
        found.journal.get_or_insert(survey.header.journal);
        if survey.header.boot != boot {
            break;
        }
        found.kernel_sequence = found.kernel_sequence.max(survey.kernel_sequence);
    }
    Ok(found)
}

/// Learns from the newest segment; false when it held nothing and is removed, so that the one before is the newest.
fn take_over(newest: SegmentFile, boot: Id, found: &mut Found) -> Result<bool, Error> {
    let remove =
        |path: std::path::PathBuf| segments::remove(&path).map_err(|err| Error::Remove(path, err));
    if newest.bytes < HEADER_BYTES as u64 {
        return remove(newest.path).map(|()| false);
    }
    let readable = survey(&newest, true);
    let SegmentFile {
        path,
        first_sequence,
        bytes,
    } = newest;
    let Ok(Some(survey)) = readable else {
        let records_at_most = bytes / RECORD_HEAD_BYTES as u64;
        found.next_sequence = first_sequence.saturating_add(records_at_most + 1);
        return Ok(true);
    };
    let may_append = survey.header.boot == boot && !survey.damaged;
    if survey.last_sequence.is_none() && !may_append {
        // It holds nothing, and its name is needed for the next one.
        return remove(path).map(|()| false);
    }
    let next = survey.last_sequence.map(|last| last.saturating_add(1));
    found.next_sequence = next.unwrap_or(survey.header.first_sequence);
    found.journal = Some(survey.header.journal);
    if survey.header.boot == boot {
        found.kernel_sequence = survey.kernel_sequence;
    }
    if survey.end != bytes {
        let cut = survey.file.set_len(survey.end);
        cut.map_err(|err| Error::Cut(path.clone(), err))?;
    }
    if may_append {
        found.active = Some(Active {
            path,
            file: survey.file,
            mark: survey.header.mark,
            length_bytes: survey.end,
        });
    } else {
        // Also when somebody has renamed it: the next segment needs a name of its own, above this one's.
        found.next_sequence = found.next_sequence.max(first_sequence.saturating_add(1));
    }
    Ok(true)
}

/// Reads all of a segment; `None` when its header is bad.
fn survey(segment: &SegmentFile, for_writing: bool) -> io::Result<Option<Survey>> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(for_writing).open(&segment.path)?;
    let Ok((header, first_record)) = scan::read_header(&file)? else {
        return Ok(None);
    };
    let mut scanner = Scanner::new(&file, header.mark, first_record, None);
    let mut kernel_sequence = None;
    let mut damaged = false;
    let end = loop {
        match scanner.step()? {
            Step::Record { record, .. } => {
                kernel_sequence = kernel_sequence.max(format::record_kernel_sequence(record));
            }
            Step::Damage { .. } => damaged = true,
            Step::Torn { offset, .. } | Step::End(offset) => break offset,
        }
    };
    let last_sequence = scanner.last_sequence();
    Ok(Some(Survey {
        file,
        header,
        last_sequence,
        kernel_sequence,
        damaged,
        end,
    }))
}
