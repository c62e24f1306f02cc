//! Images for pods, in containerd's namespace `k8s.io`.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use protobuf::MessageField;

use crate::containerd;
use crate::cri::client;
use crate::cri::messages::{ImageSpec, ImageStatusRequest, ImageStatusResponse};
use crate::ctr::{ctr, image_archive};

/// A static busybox, for runc.
pub const NATIVE: &str = "docker.io/library/native:latest";
/// CRI learns of an import by an event.
const LISTED_MAX: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);

/// The name of an example image, imported.
///
/// # Panics
/// When there is none of this name, or CRI does not list it.
#[must_use]
#[track_caller]
pub fn example(name: &str) -> String {
    let image = format!("wasmvm.example/{name}:latest");
    import(&image, &image_archive(name));
    image
}

/// Imports the image for runc, and the one whose program runc runs for a pod itself.
///
/// # Panics
/// When nothing says where they are, or CRI does not list them.
#[track_caller]
pub fn import_native() {
    let files = std::env::var("WASMVM_FILES")
        .expect("WASMVM_FILES names the folder of native.tar; tests/run-e2e sets it");
    import(NATIVE, &format!("{files}/native.tar"));
}

/// Once for each containerd.
#[track_caller]
fn import(image: &str, archive: &str) {
    static IMPORTED: Mutex<BTreeSet<(OsString, String)>> = Mutex::new(BTreeSet::new());
    let mut imported = IMPORTED.lock().unwrap_or_else(PoisonError::into_inner);
    let key = (containerd::address(), image.to_owned());
    if imported.contains(&key) {
        return;
    }
    ctr(["--namespace", "k8s.io", "images", "import", archive]).expect_status(0);
    let start = Instant::now();
    while !is_listed(image) {
        let late = start.elapsed() > LISTED_MAX;
        assert!(!late, "CRI does not list {image}, imported from {archive}");
        thread::sleep(POLL);
    }
    imported.insert(key);
}

fn is_listed(image: &str) -> bool {
    let request = ImageStatusRequest {
        image: MessageField::some(spec(image)),
        ..Default::default()
    };
    let answer = client::call::<ImageStatusResponse>("ImageService/ImageStatus", &request);
    answer.is_ok_and(|answer| answer.image.is_some())
}

/// As requests name an image.
#[must_use]
pub(super) fn spec(image: &str) -> ImageSpec {
    ImageSpec {
        image: image.to_owned(),
        ..Default::default()
    }
}
