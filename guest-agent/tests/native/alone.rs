//! A runner that the agent did not start.

use std::fs::File;
use std::io::{Read, pipe};
use std::os::fd::OwnedFd;
use std::path::Path;

use wasmvm_guest_agent::spawn::{RUNNER_MODE, Start, reap, spawn};

use crate::guest::EXE;

/// Exit status and stderr of a runner with these arguments and so many descriptors beyond stdio.
async fn runner(args: &[&str], descriptors: usize) -> (u32, String) {
    let null = || OwnedFd::from(File::open("/dev/null").unwrap());
    let (mut stderr, theirs) = pipe().unwrap();
    let child = spawn(Start {
        exe: Path::new(EXE),
        mode: RUNNER_MODE,
        args: &args.iter().map(ToString::to_string).collect::<Vec<_>>(),
        stdio: [null(), null(), theirs.into()],
        passed: (0..descriptors).map(|_| null()).collect(),
        terminal: false,
    });
    let process = child.unwrap().watch().unwrap();
    let mut said = String::new();
    stderr.read_to_string(&mut said).unwrap();
    (reap(&process).await.unwrap().status(), said)
}

#[tokio::test]
async fn it_says_what_is_missing() {
    for (args, descriptors, missing) in [
        (&[][..], 4, "the address of its slot"),
        (&["here", "/"], 4, "the address of its slot"),
        (&["0"], 4, "the root of its tree"),
        (&["0", "/"], 0, "descriptor 3, the slots' device"),
        (&["0", "/"], 1, "descriptor 4, its program"),
        (&["0", "/"], 2, "descriptor 5, the report pipe"),
        (&["0", "/"], 3, "descriptor 6, the start pipe"),
    ] {
        let (status, said) = runner(args, descriptors).await;
        let sentence = "a runner is started by the agent alone; this one was started without";
        assert_eq!(status, 2);
        assert_eq!(said, format!("<3>wasmvm-agent: {sentence} {missing}\n"));
    }
}
