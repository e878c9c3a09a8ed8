//! Tables as fleet printed them: columns end at tab stops of eight, the space between is tabs.

/// A tab stop.
const STOP: usize = 8;

/// Lays out rows; the last cell of a line is followed by nothing.
pub(super) fn lay_out(rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let longest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
        (longest + 1).next_multiple_of(STOP)
    };
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        for (index, cell) in row.iter().enumerate() {
            out.push_str(cell);
            if let Some(width) = widths.get(index).filter(|_| index + 1 < row.len()) {
                let missing = width.saturating_sub(cell.chars().count());
                out.extend(std::iter::repeat_n('\t', missing.div_ceil(STOP)));
            }
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rows: &[&[&str]], expected: &str) {
        let rows: Vec<Vec<String>> = rows
            .iter()
            .map(|row| row.iter().map(|cell| (*cell).to_owned()).collect())
            .collect();
        assert_eq!(lay_out(&rows), expected);
    }

    #[test]
    fn tables_are_fleets_to_the_byte() {
        check(
            &[
                &["MACHINE", "IP", "METADATA"],
                &["113f16a7...", "172.17.8.103", "region=us-east,role=web"],
                &["2a9c8f01...", "172.17.8.101", "-"],
            ],
            "MACHINE\t\tIP\t\tMETADATA\n113f16a7...\t172.17.8.103\tregion=us-east,role=web\n\
             2a9c8f01...\t172.17.8.101\t-\n",
        );
        check(
            &[
                &["UNIT", "MACHINE", "ACTIVE", "SUB"],
                &[
                    "global.service",
                    "113f16a7.../172.17.8.103",
                    "active",
                    "running",
                ],
                &[
                    "hello.service",
                    "113f16a7.../172.17.8.103",
                    "active",
                    "running",
                ],
            ],
            "UNIT\t\tMACHINE\t\t\t\tACTIVE\tSUB\n\
             global.service\t113f16a7.../172.17.8.103\tactive\trunning\n\
             hello.service\t113f16a7.../172.17.8.103\tactive\trunning\n",
        );
        check(
            &[
                &["UNIT", "HASH", "DSTATE", "STATE", "TARGET"],
                &["global.service", "8ff68b9", "launched", "-", "global"],
                &[
                    "hello.service",
                    "e55c0ae",
                    "launched",
                    "launched",
                    "113f16a7.../172.17.8.103",
                ],
                &["idle.service", "d4c61bf", "inactive", "inactive", "-"],
            ],
            "UNIT\t\tHASH\tDSTATE\t\tSTATE\t\tTARGET\n\
             global.service\t8ff68b9\tlaunched\t-\t\tglobal\n\
             hello.service\te55c0ae\tlaunched\tlaunched\t113f16a7.../172.17.8.103\n\
             idle.service\td4c61bf\tinactive\tinactive\t-\n",
        );
    }
}
