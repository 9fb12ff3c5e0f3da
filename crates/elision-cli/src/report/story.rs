//! What processes tell of the pages of files.
//!
//! With `ELISION_REPORT` set, processes append lines of two more kinds to the statistics (`elision-core/src/helper/strips.rs`):
//!
//! ```json
//! {"pid":1,"file":"device:inode","bytes":4096,"path":"…"}
//! {"pid":1,"file":"device:inode","ms":0,"states":"..dlta","did":"000123"}
//! ```

use serde::Deserialize;

/// Rows of a picture, at most.
const MOMENTS: usize = 48;

/// A line about a file.
#[derive(Deserialize)]
struct Line {
    pid: u64,
    file: String,
    #[serde(default)]
    bytes: u64,
    path: Option<String>,
    #[serde(default)]
    ms: u64,
    states: Option<String>,
    #[serde(default)]
    did: String,
}

/// The cells of a file at one time, in equal parts of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Moment {
    /// Since the first moment of all.
    pub ms: u64,
    /// Of each cell, the state of its page that has come furthest: `d`eferred, `l`oaded, `t`racked, `a`ltered, or none.
    pub states: Vec<u8>,
    /// Bits: elided, written, materialised, loaded ahead; since the moment before.
    pub did: Vec<u8>,
}

/// What became of a file in one process.
#[derive(Debug)]
pub struct Story {
    pub pid: u64,
    pub path: String,
    pub bytes: u64,
    pub moments: Vec<Moment>,
    file: String,
}

/// The stories that lines of statistics tell, the longest file first. A malformed line is left out.
pub fn stories(lines: &str) -> Vec<Story> {
    let mut stories: Vec<Story> = Vec::new();
    for line in lines.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok()) {
        let known = stories.iter().position(|story| (story.pid, &story.file) == (line.pid, &line.file));
        let at = known.unwrap_or_else(|| {
            let (pid, path, file) = (line.pid, line.file.clone(), line.file);
            stories.push(Story { pid, path, bytes: 0, moments: Vec::new(), file });
            stories.len() - 1
        });
        let story = &mut stories[at];
        if let Some(path) = line.path {
            story.bytes = line.bytes;
            if !path.is_empty() {
                story.path = path;
            }
        }
        if let Some(states) = line.states {
            let bits = |digit: char| digit.to_digit(16).unwrap_or(0) as u8;
            let did = line.did.chars().map(bits).collect();
            story.moments.push(Moment { ms: line.ms, states: states.into_bytes(), did });
        }
    }
    let first = stories.iter().flat_map(|story| &story.moments).map(|moment| moment.ms).min().unwrap_or(0);
    for story in &mut stories {
        story.moments.iter_mut().for_each(|moment| moment.ms -= first);
        thin(&mut story.moments);
    }
    stories.retain(|story| !story.moments.is_empty());
    stories.sort_by_key(|story| std::cmp::Reverse(story.bytes));
    stories
}

/// Leaves as many moments as a picture has rows. What was done in one that goes is told by the next.
fn thin(moments: &mut Vec<Moment>) {
    while moments.len() > MOMENTS {
        // The one that is closest to the next, so that a burst does not push out what came before and after.
        let gap = |at: &usize| moments[at + 1].ms - moments[*at].ms;
        let Some(at) = (1..moments.len() - 1).min_by_key(gap) else { return };
        let gone = moments.remove(at);
        moments[at].did.iter_mut().zip(gone.did).for_each(|(bits, more)| *bits |= more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(ms: usize, did: &str) -> String {
        format!(r#"{{"pid":7,"file":"1:2","ms":{},"states":"dd","did":"{did}"}}"#, 1000 + ms)
    }

    #[test]
    fn lines_become_stories() {
        let lines = [
            r#"{"pid":7,"file":"1:2","bytes":8192,"path":"/a \"b\""}"#.to_owned(),
            line(0, "00"),
            r#"{"pid":8,"file":"1:2","bytes":9000,"path":""}"#.to_owned(),
            r#"{"pid":8,"file":"1:2","ms":1010,"states":"l.","did":"0f"}"#.to_owned(),
            r#"{"pid":7,"deferred_bytes":5}"#.to_owned(),
            line(30, "13"),
            "broken".to_owned(),
        ];
        let stories = stories(&lines.join("\n"));
        let told: Vec<_> = stories.iter().map(|story| (story.pid, &*story.path, story.bytes)).collect();
        assert_eq!(told, [(8, "1:2", 9000), (7, "/a \"b\"", 8192)]);
        assert_eq!(stories[0].moments, [Moment { ms: 10, states: b"l.".to_vec(), did: vec![0, 15] }]);
        assert_eq!(stories[1].moments.iter().map(|moment| moment.ms).collect::<Vec<_>>(), [0, 30]);
    }

    #[test]
    fn many_moments_become_few_and_nothing_that_was_done_is_lost() {
        let lines: Vec<String> =
            (0..1000).map(|at| line(at * at, if at == 500 { "20" } else { "00" })).collect();
        let stories = stories(&lines.join("\n"));
        let moments = &stories[0].moments;
        assert_eq!((moments.len(), moments[0].ms, moments[MOMENTS - 1].ms), (MOMENTS, 0, 999 * 999));
        assert!(moments.is_sorted_by_key(|moment| moment.ms));
        assert_eq!(moments.iter().filter(|moment| moment.did == [2, 0]).count(), 1);
    }
}
