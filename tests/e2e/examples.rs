//! The example images' own cases: command line in, true output out. The outputs come from running the
//! same programs natively (`images/verify`), the third-party ones as their authors published them.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use wasmvm_tests::ctr::Outcome;
use wasmvm_tests::task::Run;

#[test]
fn tiny() {
    run_cases("tiny");
}

#[test]
fn hello_in_c() {
    run_cases("hello-c");
}

#[test]
fn files_environment_and_stdin() {
    run_cases("files");
}

#[test]
fn probe() {
    run_cases("probe");
}

#[test]
fn busybox() {
    run_cases("busybox");
}

#[test]
fn hello_component() {
    run_cases("hello-component");
}

#[test]
fn probe_component() {
    run_cases("probe-component");
}

#[test]
fn third_party_icestorm() {
    run_cases("icestorm");
}

#[test]
fn third_party_boolector() {
    run_cases("boolector");
}

#[test]
fn third_party_svg_components() {
    run_cases("svg");
}

/// One case, as `images/build` lays it down.
struct Case {
    name: String,
    folder: PathBuf,
}

/// `uid:gid` as the spec has it.
fn user_of(text: &str) -> serde_json::Value {
    let (uid, gid) = text.split_once(':').expect("uid:gid");
    let number = |text: &str| text.parse::<u32>().expect("a number");
    serde_json::json!({ "uid": number(uid), "gid": number(gid) })
}

fn run_cases(image: &str) {
    let images = std::env::var("WASMVM_IMAGES").expect("WASMVM_IMAGES names the example images");
    let folder = Path::new(&images).join("cases").join(image);
    let mut cases: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|err| panic!("no cases in {}: {err}", folder.display()))
        .map(|entry| entry.expect("the folder can be read"))
        .map(|entry| Case {
            name: format!("{image}/{}", entry.file_name().to_string_lossy()),
            folder: entry.path(),
        })
        .collect();
    cases.sort_by(|one, other| one.name.cmp(&other.name));
    assert!(!cases.is_empty(), "no cases in {}", folder.display());
    for case in cases {
        case.run(image);
    }
}

impl Case {
    fn run(&self, image: &str) {
        let mut run = Run::image(image)
            .args_vec(self.lines("args"))
            .stdin(self.bytes("stdin"));
        for variable in self.lines("env") {
            run = run.option("--env", &variable);
        }
        let outcome = match self.lines("user").first() {
            Some(user) => run.with_spec(|spec| spec["process"]["user"] = user_of(user)),
            None => run.to_end(),
        };
        let status = self
            .lines("status")
            .first()
            .map_or(0, |text| text.parse().expect("a number"));
        self.check(&outcome.expect_status(status));
    }

    fn check(&self, outcome: &Outcome) {
        for (stream, seen) in [("stdout", &outcome.stdout), ("stderr", &outcome.stderr)] {
            if let Some(expected) = self.file(stream) {
                let same = *seen == expected;
                assert!(same, "{}: {stream} differs: {outcome}", self.name);
            }
        }
        if let Some(expected) = self.lines("stdout.sha256").first() {
            let digest = Sha256::digest(&outcome.stdout);
            let seen: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(
                &seen, expected,
                "{}: the output's digest: {outcome}",
                self.name
            );
        }
    }

    fn file(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.folder.join(name)).ok()
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        self.file(name).unwrap_or_default()
    }

    fn lines(&self, name: &str) -> Vec<String> {
        String::from_utf8(self.bytes(name))
            .expect("text")
            .lines()
            .map(String::from)
            .collect()
    }
}
