//! Every target over its corpus, and then for some seconds over changes of it. What an input may show is
//! judged in the target's own process, which ends by it.

use std::process::Command;

/// Of each target.
const SECONDS: &str = "2";

macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        const NAMES: &[&str] = &[$(stringify!($name)),*];
        $(
            #[test]
            fn $name() {
                holds(stringify!($name));
            }
        )*
    };
}

targets![
    mmio,
    queue_setup,
    chain,
    vsock_worker,
    vsock_connection,
    fuse,
    fs_ring,
    file_server,
    file_answers,
    exits,
    console,
    console_tail,
    control,
    vm_answers,
    vm,
    agent,
    program,
    seal,
    bundle,
    proc_files,
    journal,
    undo,
    names,
    log,
    tree_race,
    store,
    compiler,
    compiler_run,
    slot,
    stream,
];

fn fuzz(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_fuzz"))
        .args(arguments)
        .output()
        .expect("the program starts");
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

fn holds(name: &str) {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/").to_owned() + name;
    let (held, said) = fuzz(&["blind", name, SECONDS, &corpus]);
    assert!(held, "{said}");
}

#[test]
fn every_target_is_tested() {
    let (listed, names) = fuzz(&["list"]);
    assert!(listed);
    assert_eq!(names.lines().collect::<Vec<_>>(), NAMES);
}
