//! From nothing to ready: an empty engine pulls the image from a registry on this machine, and starts it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::engine::{image, session};
use crate::process::run;
use crate::table::Series;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench/pull.sh");
/// To compress an image, or to pull and start it.
const LIMIT: Duration = Duration::from_secs(1800);
/// How the layers are compressed: what is added to the name, and the words for it.
const GZIP: (&str, &str) = ("", "gzip");
const ZSTD: (&str, &str) = ("-zstd", "zstd");

/// The rows of the image, and of an older one `before` to compare it with, in turns. One engine is this machine's, which
/// may know no zstd, and the other is the image's own.
pub fn rows(before: Option<&str>, runs: usize) -> Vec<Series> {
    let registry = session().dir.join("pull");
    std::fs::create_dir_all(&registry).expect("the session's directory can be written");
    let publish = |image: &str, name| script(&registry, &["publish"], &[image, name]);
    publish(image(), "new");
    before.iter().for_each(|before| drop(publish(before, "before")));
    let mut cases = vec![];
    for (name, words) in before.map(|_| ("before", "before: ")).into_iter().chain([("new", "")]) {
        for (engine, whose, compressions) in
            [("host", "this machine's Docker", &[GZIP][..]), (image(), "the image's Docker", &[GZIP, ZSTD])]
        {
            for (suffix, compression) in compressions {
                cases.push((format!("{name}{suffix}"), engine, format!("{words}{whose}, {compression}"), vec![], vec![]));
            }
        }
    }
    for run in 1..=runs {
        eprintln!("pull {run} of {runs}");
        for (name, engine, _, pulls, all) in &mut cases {
            let said = script(&registry, &["measure"], &[name, engine]);
            let mut seconds = said.split_whitespace().map(|text| text.parse::<f64>().expect("the script prints two numbers"));
            pulls.extend(seconds.next());
            all.extend(seconds.next());
        }
    }
    let series = |(_, _, words, pulls, all): (_, _, String, _, _)| {
        [Series::new(&format!("pull, {words}"), "s", "", pulls), Series::new(&format!("nothing → kubernetes-ready, {words}"), "s", "", all)]
    };
    cases.into_iter().flat_map(series).collect()
}

fn script(registry: &Path, command: &[&str], arguments: &[&str]) -> String {
    run(Command::new(SCRIPT).args(command).arg(registry).args(arguments), LIMIT).ok()
}
