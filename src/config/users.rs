//! Names of users and groups to numbers, from the system's tables. Invariant: what it gives exists,
//! or was given as a number.

use super::plan::Identity;
use crate::names::Owner;
use crate::shown::ShownName;
use nix::unistd::{Gid, Group, Uid, User, getegid, geteuid, getgrouplist};
use std::ffi::CString;
use std::path::PathBuf;

/// The error for `USER:GROUP` beside a key that names the group.
const TWICE: &str = "the group is given twice: in `USER:GROUP` and by its own key";

/// The user and group that baofs runs as.
pub(super) fn current() -> Owner {
    Owner {
        uid: geteuid().as_raw(),
        gid: getegid().as_raw(),
    }
}

/// `USER[:GROUP]` as an owner of files; without a group it is the user's own, else `default`.
pub(super) fn owner(
    user: Option<&str>,
    group: Option<&str>,
    default: Owner,
) -> Result<Owner, String> {
    let (user, group) = match user.map(|user| user.split_once(':')) {
        Some(Some(_)) if group.is_some() => {
            return Err(TWICE.to_owned());
        }
        Some(Some((user, group))) => (Some(user), Some(group)),
        Some(None) | None => (user, group),
    };
    let (uid, own) = match user {
        Some(user) => find_user(user)?,
        None => (default.uid, None),
    };
    let gid = match group {
        Some(group) => find_group(group)?,
        None => own.map_or(default.gid, |user| user.gid.as_raw()),
    };
    Ok(Owner { uid, gid })
}

/// `USER[:GROUP]` as an identity to run as.
pub(super) fn identity(text: &str) -> Result<Identity, String> {
    let (user, group) = text
        .split_once(':')
        .map_or((text, None), |(user, group)| (user, Some(group)));
    let (uid, own) = find_user(user)?;
    let gid = match (group, &own) {
        (Some(group), _) => find_group(group)?,
        (None, Some(own)) => own.gid.as_raw(),
        (None, None) => {
            return Err(format!(
                "user {uid} has no entry in /etc/passwd, so its group is unknown; expected `UID:GID`"
            ));
        }
    };
    let supplementary = |user: &User| {
        getgrouplist(&CString::new(user.name.as_str()).ok()?, Gid::from_raw(gid)).ok()
    };
    let groups = own.as_ref().and_then(supplementary).map_or_else(
        || vec![gid],
        |all| all.into_iter().map(Gid::as_raw).collect(),
    );
    let (home, name) = own.map_or_else(
        || (PathBuf::from("/"), uid.to_string()),
        |own| (own.dir, own.name),
    );
    Ok(Identity {
        owner: Owner { uid, gid },
        groups,
        home,
        name,
    })
}

fn find_user(text: &str) -> Result<(u32, Option<User>), String> {
    if let Ok(uid) = text.parse() {
        return Ok((uid, User::from_uid(Uid::from_raw(uid)).ok().flatten()));
    }
    match User::from_name(text) {
        Ok(Some(user)) => Ok((user.uid.as_raw(), Some(user))),
        Ok(None) | Err(_) => Err(unknown("user", text, "passwd")),
    }
}

fn find_group(text: &str) -> Result<u32, String> {
    if let Ok(gid) = text.parse() {
        return Ok(gid);
    }
    match Group::from_name(text) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) | Err(_) => Err(unknown("group", text, "group")),
    }
}

fn unknown(kind: &str, text: &str, table: &str) -> String {
    let text = ShownName::from(text);
    format!("unknown {kind} `{text}`: expected a name in /etc/{table} or a number")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners() {
        let default = Owner { uid: 7, gid: 8 };
        let of = |user, group| owner(user, group, default).map(|o| (o.uid, o.gid));
        assert_eq!(of(None, None), Ok((7, 8)));
        assert_eq!(of(Some("root"), None), Ok((0, 0)));
        assert_eq!(of(Some("54321"), None), Ok((54321, 8)));
        assert_eq!(of(Some("root:9"), None), Ok((0, 9)));
        assert_eq!(of(None, Some("root")), Ok((7, 0)));
        assert_eq!(of(Some("1:2"), Some("3")), Err(TWICE.to_owned()));
        assert_eq!(
            of(Some("no such user"), None),
            Err(
                "unknown user `no such user`: expected a name in /etc/passwd or a number"
                    .to_owned()
            )
        );
        assert_eq!(
            of(Some("0:no such group"), None),
            Err(
                "unknown group `no such group`: expected a name in /etc/group or a number"
                    .to_owned()
            )
        );
    }

    #[test]
    fn identities() {
        let root = identity("root").expect("root is everywhere");
        assert_eq!(
            (root.owner.uid, root.owner.gid, root.name.as_str()),
            (0, 0, "root")
        );
        assert!(root.groups.contains(&0));
        let stranger = identity("54321:54322").expect("numbers need no entry");
        assert_eq!(
            (stranger.groups, stranger.home, stranger.name),
            (vec![54322], PathBuf::from("/"), "54321".to_owned())
        );
        assert!(identity("54321").expect_err("no group").contains("54321"));
    }
}
