//! Reading file actions.

use super::{Decoded, Unknown, fields, number, position};
use crate::{
    Action, ActionInput, Copy, CopyMode, FileAction, LlbError, MakeDirectory, MakeFile, Owner,
    Remove, Symlink, UserRef,
};

pub(super) fn read_action(
    bytes: &[u8],
    inputs: usize,
    unknown: &mut Unknown,
) -> Decoded<FileAction> {
    let from = |value: i64| -> Decoded<Option<ActionInput>> {
        Ok(
            position("action input", value)?.map(|number| match number.checked_sub(inputs) {
                Some(action) => ActionInput::Action(action),
                None => ActionInput::Vertex(number),
            }),
        )
    };
    let mut input = from(0)?;
    let mut secondary_input = from(0)?;
    let mut output = Some(0);
    let mut action = None;
    fields("file action", bytes, unknown, |field, unknown| {
        match field.number {
            1 => input = from(field.int()?)?,
            2 => secondary_input = from(field.int()?)?,
            3 => output = position("action output", field.int()?)?,
            4 => action = Some(Action::Copy(Box::new(read_copy(field.bytes()?, unknown)?))),
            5 => action = Some(Action::MakeFile(read_make_file(field.bytes()?, unknown)?)),
            6 => {
                action = Some(Action::MakeDirectory(read_directory(
                    field.bytes()?,
                    unknown,
                )?))
            }
            7 => action = Some(Action::Remove(read_remove(field.bytes()?, unknown)?)),
            8 => action = Some(Action::Symlink(read_symlink(field.bytes()?, unknown)?)),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let action = action.ok_or(LlbError::Value {
        what: "file action",
        value: 0,
    })?;
    Ok(FileAction {
        input,
        secondary_input,
        output,
        action,
    })
}

fn time(value: i64) -> Option<i64> {
    (value != -1).then_some(value)
}

pub(super) fn read_copy(bytes: &[u8], unknown: &mut Unknown) -> Decoded<Copy> {
    let mut copy = Copy {
        mode: CopyMode::Bits(0),
        timestamp: Some(0),
        ..Copy::default()
    };
    let mut symbolic = String::new();
    fields("copy", bytes, unknown, |field, unknown| {
        match field.number {
            1 => copy.source = field.text()?,
            2 => copy.dest = field.text()?,
            3 => copy.owner = Some(read_owner(field.bytes()?, unknown)?),
            4 => {
                copy.mode = match field.int32()? {
                    -1 => CopyMode::Keep,
                    bits => CopyMode::Bits(number("file mode", i64::from(bits))?),
                };
            }
            5 => copy.follow_symlink = field.flag()?,
            6 => copy.directory_contents = field.flag()?,
            7 => copy.unpack = field.flag()?,
            8 => copy.create_dest_path = field.flag()?,
            9 => copy.allow_wildcard = field.flag()?,
            10 => copy.allow_empty_wildcard = field.flag()?,
            11 => copy.timestamp = time(field.int()?),
            12 => copy.include_patterns.push(field.text()?),
            13 => copy.exclude_patterns.push(field.text()?),
            14 => copy.replace_existing = field.flag()?,
            15 => symbolic = field.text()?,
            16 => copy.required_paths.push(field.text()?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    if !symbolic.is_empty() {
        copy.mode = CopyMode::Symbolic(symbolic);
    }
    Ok(copy)
}

pub(super) fn read_make_file(bytes: &[u8], unknown: &mut Unknown) -> Decoded<MakeFile> {
    let mut file = MakeFile {
        timestamp: Some(0),
        ..MakeFile::default()
    };
    fields("mkfile", bytes, unknown, |field, unknown| {
        match field.number {
            1 => file.path = field.text()?,
            2 => file.mode = number("file mode", field.int()?)?,
            3 => file.data = field.bytes()?.to_vec(),
            4 => file.owner = Some(read_owner(field.bytes()?, unknown)?),
            5 => file.timestamp = time(field.int()?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(file)
}

pub(super) fn read_directory(bytes: &[u8], unknown: &mut Unknown) -> Decoded<MakeDirectory> {
    let mut directory = MakeDirectory {
        timestamp: Some(0),
        ..MakeDirectory::default()
    };
    fields("mkdir", bytes, unknown, |field, unknown| {
        match field.number {
            1 => directory.path = field.text()?,
            2 => directory.mode = number("file mode", field.int()?)?,
            3 => directory.make_parents = field.flag()?,
            4 => directory.owner = Some(read_owner(field.bytes()?, unknown)?),
            5 => directory.timestamp = time(field.int()?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(directory)
}

pub(super) fn read_remove(bytes: &[u8], unknown: &mut Unknown) -> Decoded<Remove> {
    let mut remove = Remove::default();
    fields("rm", bytes, unknown, |field, _| {
        match field.number {
            1 => remove.path = field.text()?,
            2 => remove.allow_not_found = field.flag()?,
            3 => remove.allow_wildcard = field.flag()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(remove)
}

pub(super) fn read_symlink(bytes: &[u8], unknown: &mut Unknown) -> Decoded<Symlink> {
    let mut link = Symlink {
        timestamp: Some(0),
        ..Symlink::default()
    };
    fields("symlink", bytes, unknown, |field, unknown| {
        match field.number {
            1 => link.old_path = field.text()?,
            2 => link.new_path = field.text()?,
            3 => link.owner = Some(read_owner(field.bytes()?, unknown)?),
            4 => link.timestamp = time(field.int()?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(link)
}

pub(super) fn read_owner(bytes: &[u8], unknown: &mut Unknown) -> Decoded<Owner> {
    let mut owner = Owner::default();
    fields("owner", bytes, unknown, |field, unknown| {
        match field.number {
            1 => owner.user = read_user(field.bytes()?, unknown)?,
            2 => owner.group = read_user(field.bytes()?, unknown)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(owner)
}

pub(super) fn read_user(bytes: &[u8], unknown: &mut Unknown) -> Decoded<Option<UserRef>> {
    let mut who = None;
    fields("user", bytes, unknown, |field, unknown| {
        match field.number {
            1 => {
                let mut name = String::new();
                let mut input = Some(0);
                fields("user name", field.bytes()?, unknown, |field, _| {
                    match field.number {
                        1 => name = field.text()?,
                        2 => input = position("owner input", field.int()?)?,
                        _ => return Ok(false),
                    }
                    Ok(true)
                })?;
                who = Some(UserRef::Name { name, input });
            }
            2 => who = Some(UserRef::Id(number("user id", field.int()?)?)),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(who)
}
