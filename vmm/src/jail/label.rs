//! The label of a Linux security module: AppArmor's profile, SELinux's context.
//!
//! Both labels are taken by writing to the thread's own file in /proc (`Documentation/admin-guide/LSM/apparmor.rst`,
//! `Documentation/admin-guide/LSM/index.rst`): the process changes in place, after its last mount, because
//! profiles made for containers forbid mounting, and before no_new_privs, which would forbid the change. The
//! file is opened while the host's /proc is in sight; the VMM's own /proc is read-only.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use wasmvm_protocol::control::Credentials;

use super::JailError;

/// The directory of the thread's files of security modules.
const ATTR: &str = "/proc/thread-self/attr";
/// AppArmor's own file, then the shared one for kernels without it.
const APPARMOR: [&str; 2] = ["apparmor/current", "current"];
/// The file for SELinux's context.
const SELINUX: [&str; 1] = ["current"];

/// Labels to be taken, each with its open file.
#[derive(Debug)]
pub(super) struct Labels(Vec<Label>);

#[derive(Debug)]
struct Label {
    label: String,
    name: &'static str,
    file: File,
    text: String,
}

/// Opens the files that [`Labels::take`] writes to; none for credentials without a label.
pub(super) fn open(credentials: &Credentials) -> Result<Labels, JailError> {
    open_in(Path::new(ATTR), credentials)
}

fn open_in(attr: &Path, credentials: &Credentials) -> Result<Labels, JailError> {
    let profile = credentials.apparmor_profile.as_ref();
    let context = credentials.selinux_label.as_ref();
    let apparmor =
        profile.map(|profile| (profile, &APPARMOR[..], format!("changeprofile {profile}")));
    let selinux = context.map(|context| (context, &SELINUX[..], context.clone()));
    let wanted = apparmor.into_iter().chain(selinux);
    let labels = wanted.map(|(label, names, text)| {
        let (name, file) = open_first(attr, names).map_err(|(name, source)| JailError::Label {
            label: label.clone(),
            file: name,
            source,
        })?;
        let label = label.clone();
        Ok(Label {
            label,
            name,
            file,
            text,
        })
    });
    labels.collect::<Result<_, _>>().map(Labels)
}

type Opened = (&'static str, File);

/// Opens the first of the files that exists.
fn open_first(attr: &Path, names: &[&'static str]) -> Result<Opened, (&'static str, io::Error)> {
    let mut failed = ("", io::Error::from(io::ErrorKind::NotFound));
    for &name in names {
        match File::options().write(true).open(attr.join(name)) {
            Ok(file) => return Ok((name, file)),
            Err(error) => failed = (name, error),
        }
    }
    Err(failed)
}

impl Labels {
    /// Changes this process's labels. One `write(2)` each: the kernel takes no label in parts.
    pub(super) fn take(self) -> Result<(), JailError> {
        for Label {
            label,
            name,
            mut file,
            text,
        } in self.0
        {
            let written = file.write(text.as_bytes()).and_then(|bytes| match bytes {
                bytes if bytes == text.len() => Ok(()),
                bytes => Err(io::Error::other(format!("only {bytes} bytes were taken"))),
            });
            written.map_err(|source| JailError::Label {
                label,
                file: name,
                source,
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn credentials(apparmor: Option<&str>, selinux: Option<&str>) -> Credentials {
        Credentials {
            apparmor_profile: apparmor.map(str::to_owned),
            selinux_label: selinux.map(str::to_owned),
            ..Credentials::default()
        }
    }

    #[test]
    fn the_bytes_that_each_module_takes_are_written_where_it_takes_them() {
        let attr = tempfile::tempdir().unwrap();
        let at = |name: &str| attr.path().join(name);
        fs::create_dir(at("apparmor")).unwrap();
        fs::write(at("apparmor/current"), "").unwrap();
        fs::write(at("current"), "").unwrap();
        let profile = credentials(Some("cri-containerd.apparmor.d"), None);
        let labels = open_in(attr.path(), &profile).unwrap();
        assert_eq!(fs::read(at("apparmor/current")).unwrap(), b"");
        labels.take().unwrap();
        let written = fs::read_to_string(at("apparmor/current")).unwrap();
        assert_eq!(written, "changeprofile cri-containerd.apparmor.d");
        assert_eq!(fs::read(at("current")).unwrap(), b"");

        let context = "system_u:system_r:container_kvm_t:s0:c1,c2";
        let labels = open_in(attr.path(), &credentials(None, Some(context))).unwrap();
        labels.take().unwrap();
        assert_eq!(fs::read_to_string(at("current")).unwrap(), context);
    }

    #[test]
    fn a_label_that_cannot_be_taken_ends_the_start_by_name() {
        let attr = tempfile::tempdir().unwrap();
        let error = open_in(attr.path(), &credentials(Some("p"), None)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "jail: cannot take the label \"p\" by current"
        );
        assert!(
            open_in(attr.path(), &credentials(None, None))
                .unwrap()
                .0
                .is_empty()
        );
    }
}
