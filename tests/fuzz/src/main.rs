//! The fuzz targets' program: `docs/fuzzing.md` says how to use it.
//!
//! One target is one function from bytes to nothing ([`targets`]); it panics where something does not hold
//! that must. Here are the bounds around it that hold for all (heap and CPU, [`bound`]) and the three
//! ways to call it: with inputs that are there, with blind changes of them ([`blind`]), and, built with the
//! feature `coverage`, by libFuzzer (`hunt.rs`), which follows the code that an input reaches.

mod allocator;
mod blind;
mod bound;
#[cfg(feature = "coverage")]
mod hunt;
mod inputs;
mod protocol;
mod targets;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use targets::{TARGETS, Target};

const USAGE: &str = "usage: fuzz list
       fuzz replay TARGET FILE|FOLDER...      each input once
       fuzz blind TARGET SECONDS FOLDER       each input once, then changes of them
       fuzz hunt TARGET FOLDER LIBFUZZER...   libFuzzer (built by `make fuzz`)";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("fuzz: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<(), String> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["list"] => {
            TARGETS
                .iter()
                .for_each(|target| println!("{}", target.name));
            Ok(())
        }
        ["replay", name, ref paths @ ..] if !paths.is_empty() => {
            let target = prepared(name)?;
            bound::report_panics();
            for path in paths {
                let inputs = inputs::read(&PathBuf::from(path))?;
                inputs.iter().for_each(|input| bound::run(target, input));
            }
            Ok(())
        }
        ["blind", name, seconds, folder] => {
            let target = prepared(name)?;
            let seconds = seconds
                .parse()
                .map_err(|_| format!("{seconds:?} is no number of seconds"))?;
            bound::report_panics();
            let known = inputs::read(&PathBuf::from(folder))?;
            blind::run(target, &known, Duration::from_secs(seconds))
        }
        #[cfg(feature = "coverage")]
        ["hunt", name, ref rest @ ..] => hunt::run(prepared(name)?, rest),
        _ => Err(USAGE.to_owned()),
    }
}

/// The target of this name, ready to be called.
fn prepared(name: &str) -> Result<&'static Target, String> {
    let target = TARGETS.iter().find(|target| target.name == name);
    let target = target.ok_or_else(|| format!("there is no target {name:?}; see `fuzz list`"))?;
    if let Some(prepare) = target.prepare {
        prepare()?;
    }
    Ok(target)
}
