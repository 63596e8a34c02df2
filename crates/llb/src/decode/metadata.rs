//! Reading what stands beside vertices.

use super::{Decoded, Unknown, fields, number, text_entry};
use crate::{
    LinuxResources, LlbError, Location, Metadata, Position, ProgressGroup, Range, SourceFile,
    encode,
};

pub(super) fn read_metadata(bytes: &[u8], unknown: &mut Unknown) -> Decoded<Metadata> {
    let mut metadata = Metadata::default();
    // Only fields of the message itself can be put back; those inside others are let go.
    let nested = &mut Vec::new();
    fields("metadata", bytes, unknown, |field, _| {
        match field.number {
            1 => metadata.ignore_cache = field.flag()?,
            2 => {
                let (key, value) = text_entry("description", field)?;
                match key.as_str() {
                    encode::CUSTOM_NAME if !value.is_empty() => metadata.name = value,
                    encode::COMMAND if !value.is_empty() => metadata.command = value,
                    _ => {
                        metadata.description.insert(key, value);
                    }
                }
            }
            4 => {
                let mut export = false;
                fields("export cache", field.bytes()?, nested, |field, _| {
                    if field.number == 1 {
                        export = field.flag()?;
                    }
                    Ok(field.number == 1)
                })?;
                metadata.export_cache = Some(export);
            }
            5 => {
                let (mut key, mut value) = (String::new(), false);
                fields("capability", field.bytes()?, nested, |field, _| {
                    match field.number {
                        1 => key = field.text()?,
                        2 => value = field.flag()?,
                        _ => return Ok(false),
                    }
                    Ok(true)
                })?;
                metadata.caps.insert(key, value);
            }
            6 => {
                let group = metadata.progress_group.get_or_insert_default();
                read_group(group, field.bytes()?, nested)?;
            }
            7 => {
                let resources = metadata.linux_resources.get_or_insert_default();
                read_resources(resources, field.bytes()?, nested)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(metadata)
}

pub(super) fn read_group(
    into: &mut ProgressGroup,
    bytes: &[u8],
    unknown: &mut Unknown,
) -> Decoded<()> {
    fields("progress group", bytes, unknown, |field, _| {
        match field.number {
            1 => into.id = field.text()?,
            2 => into.name = field.text()?,
            3 => into.weak = field.flag()?,
            _ => return Ok(false),
        }
        Ok(true)
    })
}

pub(super) fn read_resources(
    into: &mut LinuxResources,
    bytes: &[u8],
    unknown: &mut Unknown,
) -> Decoded<()> {
    fields("resources", bytes, unknown, |field, _| {
        match field.number {
            1 => into.memory = field.int()?,
            2 => into.memory_swap = field.int()?,
            3 => into.cpu_shares = field.int()? as u64,
            4 => into.cpu_period = field.int()? as u64,
            5 => into.cpu_quota = field.int()?,
            6 => into.cpuset_cpus = field.text()?,
            7 => into.cpuset_mems = field.text()?,
            _ => return Ok(false),
        }
        Ok(true)
    })
}

pub(super) fn read_source_file(bytes: &[u8]) -> Decoded<SourceFile> {
    let mut file = SourceFile::default();
    fields("source info", bytes, &mut Vec::new(), |field, _| {
        match field.number {
            1 => file.filename = field.text()?,
            2 => file.data = field.bytes()?.into(),
            3 => file.definition = Some(field.bytes()?.to_vec()),
            4 => file.language = field.text()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(file)
}

pub(super) fn read_locations(bytes: &[u8]) -> Decoded<Vec<Location>> {
    let mut locations = Vec::new();
    let unknown = &mut Vec::new();
    fields("locations", bytes, unknown, |field, unknown| {
        if field.number != 1 {
            return Ok(false);
        }
        let mut location = Location::default();
        fields("location", field.bytes()?, unknown, |field, unknown| {
            match field.number {
                1 => {
                    let value = field.int()?;
                    location.source = usize::try_from(value).map_err(|_| LlbError::Value {
                        what: "source file number",
                        value,
                    })?;
                }
                2 => {
                    let mut range = Range::default();
                    fields("range", field.bytes()?, unknown, |field, unknown| {
                        match field.number {
                            1 => range.start = read_place(field.bytes()?, unknown)?,
                            2 => range.end = read_place(field.bytes()?, unknown)?,
                            _ => return Ok(false),
                        }
                        Ok(true)
                    })?;
                    location.ranges.push(range);
                }
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        locations.push(location);
        Ok(true)
    })?;
    Ok(locations)
}

pub(super) fn read_place(bytes: &[u8], unknown: &mut Unknown) -> Decoded<Position> {
    let mut position = Position::default();
    fields("position", bytes, unknown, |field, _| {
        match field.number {
            1 => position.line = number("line", field.int()?)?,
            2 => position.character = number("character", field.int()?)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(position)
}
