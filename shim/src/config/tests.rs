//! Configurations as operators write them, and installations with holes.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Config, ConfigError, GuestFiles, Sharing};
use crate::error::{Coded as _, ErrorCode, expect_codes};

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::default().with_text(text, Path::new("/etc/wasmvm/config.toml"))
}

#[test]
fn nothing_means_the_defaults() {
    assert_eq!(parse("").unwrap(), Config::default());
    let absent = Path::new("/no/such/config.toml");
    assert_eq!(Config::load_from(absent).unwrap(), Config::default());
}

#[test]
fn every_key_is_taken() {
    let config = parse(
        "default_memory_mib = 512\nconsole = true\nboot_timeout_s = 5\n\
         load_timeout_s = 9\ncompile_timeout_s = 6\ncompilers_max = 3\nartifact_dir = \"/srv/a\"\n\
         artifact_dir_mib_max = 7\nartifact_memory_mib_max = 8\nsharing = \"tenant\"\n",
    );
    let expected = Config {
        default_memory_mib: 512,
        console: true,
        boot_timeout_s: 5,
        load_timeout_s: 9,
        compile_timeout_s: 6,
        compilers_max: 3,
        artifact_dir: PathBuf::from("/srv/a"),
        artifact_dir_mib_max: 7,
        artifact_memory_mib_max: 8,
        sharing: Sharing::Tenant,
    };
    assert_eq!(config.unwrap(), expected);
}

#[test]
fn a_mistake_is_named_with_its_line() {
    for (text, expected) in [
        (
            "console = true\n\nmemory = 1\n",
            ":3: unknown field `memory`, expected one of ",
        ),
        (
            "console = 1\n",
            ":1: invalid type: integer `1`, expected a boolean",
        ),
        ("# fine\nconsole = \n", ":2: "),
        (
            "sharing = \"all\"\n",
            ":1: unknown variant `all`, expected one of `host`, `tenant`, `none`",
        ),
        (
            "boot_timeout_s = 0",
            ":1: boot_timeout_s = 0 is refused: it lies between 1 and 86400",
        ),
        (
            "compilers_max = 0",
            ":1: compilers_max = 0 is refused: it lies between 1 and 256",
        ),
        (
            "default_memory_mib = 99999",
            ":1: default_memory_mib = 99999 is refused",
        ),
        (
            "default_memory_mib = -1",
            ":1: invalid value: integer `-1`, expected u32",
        ),
        (
            "artifact_dir = \"a\"",
            ":1: artifact_dir = \"a\" is refused: the path must be absolute",
        ),
    ] {
        let error = parse(text).unwrap_err();
        assert_eq!(error.code(), ErrorCode::FailedPrecondition);
        let expected = format!("/etc/wasmvm/config.toml{expected}");
        assert!(error.to_string().starts_with(&expected), "{error}");
    }
}

#[test]
fn the_first_missing_guest_file_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let names = [
        "wasmvm-vmm",
        "wasmvm-holder",
        "kernel",
        "agent.cpio",
        "compiler.cpio",
    ];
    for name in names {
        let error = GuestFiles::find_in(directory.path()).unwrap_err();
        assert_eq!(error.code(), ErrorCode::FailedPrecondition);
        let path = directory.path().join(name);
        let end = format!(
            " is missing at {}; install it with `make install`",
            path.display()
        );
        assert!(error.to_string().ends_with(&end), "{error}");
        fs::write(path, "x").unwrap();
    }
    let files = GuestFiles::find_in(directory.path()).unwrap();
    assert_eq!(files.compiler, directory.path().join("compiler.cpio"));
    fs::write(directory.path().join("kernel"), "").unwrap();
    let error = GuestFiles::find_in(directory.path()).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("the guest kernel is missing at "),
        "{error}"
    );
}

/// Settings at the end of a file that is cut would be the defaults again.
#[test]
fn a_file_that_is_too_long_is_refused_and_not_cut() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.toml");
    // A letter of two bytes is in two at the limit.
    let comment = format!("##{}\n", "é".repeat(1 << 20));
    fs::write(&path, comment + "console = true\n").unwrap();
    let error = Config::default().with_file(&path).unwrap_err();
    let sentence = crate::error::chain(&error);
    assert!(
        sentence.ends_with("longer than 1048576 bytes"),
        "{sentence}"
    );
}

#[test]
fn every_error_has_its_code() {
    let path = || PathBuf::from("/c");
    let source = || std::io::ErrorKind::NotFound.into();
    let unmet = [
        ConfigError::Read {
            path: path(),
            source: source(),
        },
        ConfigError::Parse {
            path: path(),
            line: 1,
            message: "no".into(),
        },
        ConfigError::Value {
            path: path(),
            line: 1,
            key: "a",
            value: "1".into(),
            reason: "no".into(),
        },
        ConfigError::Missing {
            what: "the guest kernel",
            path: path(),
            source: source(),
        },
    ];
    expect_codes(unmet.map(|error| (error, ErrorCode::FailedPrecondition)));
    expect_codes([(ConfigError::Executable(source()), ErrorCode::Internal)]);
}
