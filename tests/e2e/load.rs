//! Many tasks, in a row and at once.

use std::thread;

use wasmvm_tests::ctr::import_image;
use wasmvm_tests::leftovers;
use wasmvm_tests::task::Run;

const IN_A_ROW: usize = 20;
const AT_ONCE: usize = 5;

#[test]
fn twenty_in_a_row_are_all_right_and_leave_nothing() {
    let before = leftovers::found();
    for _ in 0..IN_A_ROW {
        let outcome = Run::image("tiny").to_end().expect_status(0);
        assert!(!outcome.stdout.is_empty(), "{outcome}");
    }
    leftovers::expect_none_since(&before);
}

#[test]
fn five_at_once_are_all_right_and_leave_nothing() {
    import_image("probe");
    let before = leftovers::found();
    let tasks: Vec<_> = (0..AT_ONCE)
        .map(|n| {
            let text = format!("task {n}");
            thread::spawn(move || {
                let outcome = Run::image("probe")
                    .args(["/probe", "out", &text])
                    .to_end()
                    .expect_status(0);
                assert_eq!(outcome.text(), format!("{text}\n"));
            })
        })
        .collect();
    for task in tasks {
        task.join().expect("each task is all right");
    }
    leftovers::expect_none_since(&before);
}
