//! The lists below `rootfs/` and `boot/`: words separated by blanks, `#` begins a comment.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

/// A line with at least one word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// Counted from 1.
    pub(super) number: usize,
    pub(super) words: Vec<String>,
}

pub(super) fn read(path: &Path) -> Result<Vec<Line>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    Ok(parse(&text))
}

fn parse(text: &str) -> Vec<Line> {
    text.lines()
        .enumerate()
        .map(|(index, line)| {
            let content = line.split('#').next().unwrap_or_default();
            Line {
                number: index + 1,
                words: content.split_whitespace().map(ToOwned::to_owned).collect(),
            }
        })
        .filter(|line| !line.words.is_empty())
        .collect()
}

/// The first words of a list of single words.
pub(super) fn names(path: &Path) -> Result<Vec<String>> {
    Ok(read(path)?
        .into_iter()
        .flat_map(|line| line.words)
        .collect())
}

/// A list of pairs.
pub(super) fn pairs(path: &Path) -> Result<Vec<(String, String)>> {
    read(path)?
        .into_iter()
        .map(|line| match <[String; 2]>::try_from(line.words) {
            Ok([first, second]) => Ok((first, second)),
            Err(_) => bail!("{}:{}: not two words", path.display(), line.number),
        })
        .collect()
}

/// A Debian package and the files that the image takes from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Package {
    pub(super) name: String,
    /// Absolute paths inside of the package; `*` matches any characters of a name.
    pub(super) files: Vec<String>,
}

pub(super) fn packages(path: &Path) -> Result<Vec<Package>> {
    read(path)?
        .into_iter()
        .map(|line| {
            let mut words = line.words.into_iter();
            let name = words.next().unwrap_or_default();
            let files: Vec<String> = words.collect();
            if let Some(file) = files.iter().find(|file| !file.starts_with('/')) {
                bail!(
                    "{}:{}: {file} is not an absolute path",
                    path.display(),
                    line.number
                );
            }
            Ok(Package { name, files })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_empty_lines_are_no_lines() {
        let lines = parse("# a\n\none two # three\n  four\n");
        assert_eq!(
            lines,
            [
                Line {
                    number: 3,
                    words: vec!["one".to_owned(), "two".to_owned()]
                },
                Line {
                    number: 4,
                    words: vec!["four".to_owned()]
                }
            ]
        );
    }
}
