//! Names of users and groups to ids, from the system's tables. Invariant: a resolved name exists; a
//! number needs no entry.

use super::plan::Identity;
use crate::names::Owner;
use crate::shown::ShownName;
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use std::ffi::CString;
use std::path::PathBuf;

/// The error for `USER:GROUP` beside a key that names the group.
const TWICE: &str = "the group is given twice: in `USER:GROUP` and by its own key";

/// Parses `USER[:GROUP]` as an owner of files. A missing group is the primary group of the user, and
/// the default's for a user without an entry.
pub(super) fn owner(
    user: Option<&str>,
    group: Option<&str>,
    default: Owner,
) -> Result<Owner, String> {
    let mut owner = default;
    let mut group = group;
    if let Some(text) = user {
        let (user, of_user) = split(text);
        if of_user.is_some() && group.is_some() {
            return Err(TWICE.to_owned());
        }
        group = group.or(of_user);
        let (uid, entry) = find_user(user)?;
        owner.uid = uid;
        if let Some(entry) = entry {
            owner.gid = entry.gid.as_raw();
        }
    }
    if let Some(group) = group {
        owner.gid = find_group(group)?;
    }
    Ok(owner)
}

/// Parses `USER[:GROUP]` as the identity of a process.
pub(super) fn identity(text: &str) -> Result<Identity, String> {
    let (user, group) = split(text);
    let (uid, entry) = find_user(user)?;
    let gid = match (group, &entry) {
        (Some(group), _) => find_group(group)?,
        (None, Some(entry)) => entry.gid.as_raw(),
        (None, None) => {
            return Err(format!(
                "user {uid} has no entry in /etc/passwd, so its group is unknown; expected `UID:GID`"
            ));
        }
    };
    let mut identity = Identity {
        owner: Owner { uid, gid },
        groups: vec![gid],
        home: PathBuf::from("/"),
        name: uid.to_string(),
    };
    if let Some(entry) = entry {
        let name = CString::new(entry.name.as_str()).unwrap_or_default();
        if let Ok(groups) = getgrouplist(&name, Gid::from_raw(gid)) {
            identity.groups = groups.into_iter().map(Gid::as_raw).collect();
        }
        identity.home = entry.dir;
        identity.name = entry.name;
    }
    Ok(identity)
}

fn split(text: &str) -> (&str, Option<&str>) {
    match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    }
}

fn find_user(text: &str) -> Result<(u32, Option<User>), String> {
    if let Ok(uid) = text.parse() {
        return Ok((uid, User::from_uid(Uid::from_raw(uid)).ok().flatten()));
    }
    let Ok(Some(user)) = User::from_name(text) else {
        return Err(unknown("user", text, "passwd"));
    };
    Ok((user.uid.as_raw(), Some(user)))
}

fn find_group(text: &str) -> Result<u32, String> {
    if let Ok(gid) = text.parse() {
        return Ok(gid);
    }
    let Ok(Some(group)) = Group::from_name(text) else {
        return Err(unknown("group", text, "group"));
    };
    Ok(group.gid.as_raw())
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
