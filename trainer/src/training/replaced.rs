//! Which files of earlier runs a run is going to replace.

use std::ops::Range;
use std::path::{Path, PathBuf};

use indicatif::HumanDuration;
use strata_model::{TensorFile, counted};

use crate::Config;
use crate::data::dataset::{files, names};
use crate::training::plan::Plan;

/// Says of the files that the training of a feature writes from step `taken` on which are there, and what the main one is;
/// nothing where none is.
pub(crate) fn replaced(config: &Config, plan: &Plan, taken: u64) -> Option<String> {
    let output = plan.feature.file();
    let numbered = numbered(output, config.train.save_every, taken + 1..config.steps_of(&plan.feature));
    let numbered: Vec<&Path> = numbered.iter().map(PathBuf::as_path).collect();
    let whole = output.is_file().then(|| format!("{}{}", output.display(), history(output)));
    match (whole, &numbered[..]) {
        (None, []) => None,
        (Some(whole), []) => Some(format!("{whole}, is replaced")),
        (None, saves) => Some(format!("of an earlier run are replaced: {}", names(saves))),
        (Some(whole), saves) => Some(format!("{whole}, is replaced; {} as well", names(saves))),
    }
}

/// `, trained with 40 steps, 3 hours old`: as much as a file and its header say.
fn history(file: &Path) -> String {
    let steps =
        TensorFile::open(file).ok().and_then(|file| file.metadata().get("ss_steps")?.parse::<u64>().ok());
    let age = file.metadata().and_then(|data| data.modified()).ok().and_then(|time| time.elapsed().ok());
    let steps = steps.map(|steps| format!(", trained with {}", counted(steps, "step")));
    let age = age.map(|age| format!(", {} old", HumanDuration(age)));
    [steps, age].into_iter().flatten().collect()
}

/// The files beside an output that a run saves on its way, in these steps, which are there already.
fn numbered(output: &Path, every: u64, steps: Range<u64>) -> Vec<PathBuf> {
    let stem = output.file_stem().unwrap_or_default().to_string_lossy();
    let folder = output.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    let step = |file: &PathBuf| {
        let name = file.file_name()?.to_str()?;
        let digits = name.strip_prefix(&*stem)?.strip_prefix('-')?.strip_suffix(".safetensors")?;
        digits.parse::<u64>().ok().filter(|_| digits.len() >= 6)
    };
    let saved = |step: u64| every > 0 && steps.contains(&step) && step.is_multiple_of(every);
    let mut files = files(folder).unwrap_or_default();
    files.retain(|file| step(file).is_some_and(saved));
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_a_run_saves_on_its_way() {
        let folder = tempfile::tempdir().unwrap();
        let all = ["a-000002", "a-000003", "a-000004", "a-000006", "a-4", "a-x", "b-000004", "a"];
        for name in all {
            std::fs::write(folder.path().join(format!("{name}.safetensors")), "").unwrap();
        }
        let found = |every, steps: Range<u64>| -> Vec<String> {
            let files = numbered(&folder.path().join("a.safetensors"), every, steps);
            files.iter().map(|file| file.file_stem().unwrap().to_string_lossy().into_owned()).collect()
        };
        assert_eq!(found(2, 1..6), ["a-000002", "a-000004"]);
        assert_eq!(found(2, 3..6), ["a-000004"]);
        assert_eq!(found(0, 1..6), [""; 0]);
        assert_eq!(found(3, 1..7), ["a-000003", "a-000006"]);
    }
}
