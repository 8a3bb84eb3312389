//! The table of cases in `cases.txt`: for each rule of the API one that keeps it and one that breaks it, with what is read
//! and every issue, word by word.

use super::{clusterwide, document, namespaced, shown};
use crate::parse::object;

#[test]
fn every_case_reads_as_the_table_says() {
    let table = include_str!("cases.txt");
    let mut is = String::new();
    for case in table.split("### ").skip(1) {
        let (title, rest) = case.split_once('\n').expect("title");
        let (body, _) = rest.split_once("=>\n").expect("=>");
        let document = match title.split_once(' ').map(|(word, _)| word) {
            Some("CCNP") => clusterwide(body),
            Some("whole") => document(body),
            _ => namespaced(body),
        };
        is += &format!("### {title}\n{body}=>\n{}\n", shown::parsed(&object(&document)));
    }
    let head: String = table.split_inclusive('\n').take_while(|line| !line.starts_with("###")).collect();
    let is = head + is.trim_end() + "\n";
    assert!(is == table, "cases.txt should be, if all of this is right:\n<<<\n{is}>>>");
}
