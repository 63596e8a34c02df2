//! Docker's default seccomp filter, compiled from data to BPF.
//!
//! One program holds all calling conventions of the machine (x86_64, x32 and i386, or aarch64 and arm), so
//! that a 32-bit program runs under the rules of its own. The numbers of a convention are looked up in a
//! balanced tree of ranges: about seven comparisons a call, and a small program to hand to the kernel.
//! The builders of seccomp programs that exist as crates take one architecture and a list, which costs the
//! kernel more at each step than everything else the filter does.

use std::collections::BTreeMap;

use crate::capabilities::{self, Set};
use crate::error::SandboxError;
use crate::sys::{self, Instruction};

const PROFILE: &str = include_str!("../data/seccomp-docker.txt");
const NUMBERS: &str = include_str!("../data/syscall-numbers.txt");

/// The column of each calling convention in the table of numbers.
const COLUMNS: [&str; 5] = ["x86_64", "i386", "x32", "aarch64", "arm"];

/// What tells x32 from x86_64.
const X32_BIT: u32 = 0x4000_0000;

/// A filter that is ready to be installed.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    program: Vec<Instruction>,
}

impl Filter {
    /// Compiles the filter for a command with `bounding` as its bounding set.
    pub(crate) fn docker_default(bounding: Set) -> Result<Filter, SandboxError> {
        let rules = parse_profile(PROFILE, bounding).ok_or_else(|| malformed("profile"))?;
        let table = |abi: &str| {
            let numbers = parse_numbers(NUMBERS, abi).ok_or_else(|| malformed("table"))?;
            Ok::<_, SandboxError>(search_tree(&ranges(&rules, &numbers, abi)))
        };
        let program = match std::env::consts::ARCH {
            "x86_64" => dispatch(
                (
                    AUDIT_ARCH_X86_64,
                    split_x32(&table("x86_64")?, &table("x32")?),
                ),
                (AUDIT_ARCH_I386, table("i386")?),
            ),
            "aarch64" => dispatch(
                (AUDIT_ARCH_AARCH64, table("aarch64")?),
                (AUDIT_ARCH_ARM, table("arm")?),
            ),
            other => {
                return Err(SandboxError::Isolation(format!(
                    "no seccomp filter is known for {other}"
                )));
            }
        };
        Ok(Filter { program })
    }

    /// Puts the filter over this thread. Needs `CAP_SYS_ADMIN` in the user namespace.
    pub(crate) fn install(&self) -> std::io::Result<()> {
        sys::install_filter(&self.program)
    }
}

/// Returns the same rules as an OCI runtime takes them (`linux.seccomp`).
///
/// A runtime looks names up in its own table, of each of the architectures: so rules for some of them hold for all.
/// What it has no name for it refuses in its own way.
pub(crate) fn oci_profile(bounding: Set) -> serde_json::Value {
    use serde_json::json;
    let (architectures, own): (&[&str], &[&str]) = match std::env::consts::ARCH {
        "aarch64" => (&["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"], &["aarch64", "arm"]),
        _ => (
            &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            &["x86_64", "i386", "x32"],
        ),
    };
    let rules = parse_profile(PROFILE, bounding).unwrap_or_default();
    let of_machine = rules
        .iter()
        .filter(|rule| rule.on.is_empty() || rule.on.iter().any(|abi| own.contains(&abi.as_str())));
    let calls: Vec<serde_json::Value> = of_machine
        .map(|rule| {
            let mut call = match rule.action {
                Action::Allow => json!({"names": rule.names, "action": "SCMP_ACT_ALLOW"}),
                Action::NoSuchCall => json!({
                    "names": rule.names, "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS,
                }),
            };
            if !rule.arguments.is_empty() {
                let arguments = rule.arguments.iter().map(|argument| {
                    let (operator, value, second) = match argument.test {
                        Test::Less(value) => ("SCMP_CMP_LT", value, 0),
                        Test::Equal(value) => ("SCMP_CMP_EQ", value, 0),
                        Test::Greater(value) => ("SCMP_CMP_GT", value, 0),
                        Test::Masked { mask, value } => ("SCMP_CMP_MASKED_EQ", mask, value),
                    };
                    json!({"index": argument.index, "op": operator, "value": value, "valueTwo": second})
                });
                call["args"] = arguments.collect();
            }
            call
        })
        .collect();
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": architectures,
        "syscalls": calls,
    })
}

fn malformed(what: &str) -> SandboxError {
    SandboxError::Protocol(format!("seccomp {what}"))
}

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const AUDIT_ARCH_I386: u32 = 0x4000_0003;
const AUDIT_ARCH_AARCH64: u32 = 0xc000_00b7;
const AUDIT_ARCH_ARM: u32 = 0x4000_0028;

/// One line of the profile, with the conditions that are known before it runs already decided.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    action: Action,
    /// Calling conventions; all when empty.
    on: Vec<String>,
    arguments: Vec<Argument>,
    names: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Allow,
    NoSuchCall,
}

/// A comparison of the low half of an argument: the kernel reads no more of those that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Argument {
    index: u32,
    test: Test,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Test {
    Less(u32),
    Equal(u32),
    Greater(u32),
    Masked { mask: u32, value: u32 },
}

fn parse_profile(text: &str, bounding: Set) -> Option<Vec<Rule>> {
    let mut rules = Vec::new();
    let mut current: Option<Rule> = None;
    let lines = text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    for line in lines {
        if line.starts_with(' ') {
            if let Some(rule) = &mut current {
                rule.names
                    .extend(line.split_whitespace().map(str::to_owned));
            }
            continue;
        }
        rules.extend(current.take());
        if line.starts_with("version ") {
            continue;
        }
        current = parse_head(line.strip_suffix(':')?, bounding)?;
    }
    rules.extend(current);
    Some(rules)
}

/// Parses the head of a rule; `Some(None)` when it does not hold for these capabilities.
fn parse_head(head: &str, bounding: Set) -> Option<Option<Rule>> {
    let mut words = head.split_whitespace();
    let action = match words.next()? {
        "allow" => Action::Allow,
        "enosys" => Action::NoSuchCall,
        _ => return None,
    };
    let mut rule = Rule {
        action,
        on: Vec::new(),
        arguments: Vec::new(),
        names: Vec::new(),
    };
    let mut holds = true;
    for word in words {
        if let Some(name) = word.strip_prefix("has:") {
            holds &= bounding.contains(capabilities::number(name)?);
        } else if let Some(name) = word.strip_prefix("lacks:") {
            holds &= !bounding.contains(capabilities::number(name)?);
        } else if let Some(list) = word.strip_prefix("on:") {
            rule.on = list.split(',').map(str::to_owned).collect();
        } else {
            rule.arguments
                .push(parse_argument(word.strip_prefix("arg")?)?);
        }
    }
    Some(holds.then_some(rule))
}

fn parse_argument(text: &str) -> Option<Argument> {
    let number = |text: &str| u32::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    let (index, rest) = text.split_at_checked(1)?;
    let (operator, value) = rest.split_at_checked(1)?;
    let test = match operator {
        "<" => Test::Less(number(value)?),
        "=" => Test::Equal(number(value)?),
        ">" => Test::Greater(number(value)?),
        "&" => {
            let (mask, value) = value.split_once('=')?;
            Test::Masked {
                mask: number(mask)?,
                value: number(value)?,
            }
        }
        _ => return None,
    };
    Some(Argument {
        index: index.parse().ok()?,
        test,
    })
}

/// Returns the number of each call of one calling convention.
fn parse_numbers(text: &str, abi: &str) -> Option<BTreeMap<String, u32>> {
    let column = COLUMNS.iter().position(|name| *name == abi)? + 1;
    let mut numbers = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match *words.get(column)? {
            "-" => {}
            number => {
                numbers.insert(words[0].to_owned(), number.parse().ok()?);
            }
        }
    }
    Some(numbers)
}

/// What becomes of a range of call numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Allow,
    Deny,
    NoSuchCall,
    /// Allowed when one of these holds.
    Arguments(Vec<Vec<Argument>>),
}

/// Returns the ranges of call numbers as (first, verdict), ascending from 0, neighbours unequal.
fn ranges(rules: &[Rule], numbers: &BTreeMap<String, u32>, abi: &str) -> Vec<(u32, Verdict)> {
    let mut verdicts: BTreeMap<u32, Verdict> = numbers
        .values()
        .map(|number| (*number, Verdict::Deny))
        .collect();
    let of_abi = rules
        .iter()
        .filter(|rule| rule.on.is_empty() || rule.on.iter().any(|name| name == abi));
    for rule in of_abi {
        for number in rule.names.iter().filter_map(|name| numbers.get(name)) {
            let Some(verdict) = verdicts.get_mut(number) else {
                continue;
            };
            match (rule.action, &mut *verdict) {
                (_, Verdict::Allow) => {}
                (Action::NoSuchCall, _) => *verdict = Verdict::NoSuchCall,
                (Action::Allow, _) if rule.arguments.is_empty() => *verdict = Verdict::Allow,
                (Action::Allow, Verdict::Arguments(alternatives)) => {
                    alternatives.push(rule.arguments.clone());
                }
                (Action::Allow, _) => *verdict = Verdict::Arguments(vec![rule.arguments.clone()]),
            }
        }
    }
    // Gaps below the newest number are calls that never were; above it (and around arm's private
    // numbers far above) are calls that came later.
    const PRIVATE: u32 = 0x10000;
    let newest = verdicts
        .keys()
        .copied()
        .filter(|number| *number < PRIVATE)
        .max()
        .unwrap_or(0);
    let gap = |number: u32| {
        if number <= newest {
            Verdict::Deny
        } else {
            Verdict::NoSuchCall
        }
    };
    let mut ranges: Vec<(u32, Verdict)> = Vec::new();
    let mut push = |first: u32, verdict: Verdict| {
        if ranges.last().is_none_or(|(_, last)| *last != verdict) {
            ranges.push((first, verdict));
        }
    };
    let mut next = 0;
    for (number, verdict) in verdicts {
        if number > next {
            push(next, gap(next));
            if number > newest && next <= newest {
                push(newest + 1, Verdict::NoSuchCall);
            }
        }
        push(number, verdict);
        next = number + 1;
    }
    push(next, Verdict::NoSuchCall);
    ranges
}

// The parts of a BPF program (linux/bpf_common.h, linux/seccomp.h).
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

const RETURN_ALLOW: u32 = 0x7fff_0000;
const RETURN_ERRNO: u32 = 0x0005_0000;
const RETURN_KILL_PROCESS: u32 = 0x8000_0000;

const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCHITECTURE: u32 = 4;
const OFFSET_ARGUMENTS: u32 = 16;

fn statement(code: u16, value: u32) -> Instruction {
    Instruction {
        code,
        jump_true: 0,
        jump_false: 0,
        value,
    }
}

fn branch(code: u16, value: u32, jump_true: u8, jump_false: u8) -> Instruction {
    Instruction {
        code,
        jump_true,
        jump_false,
        value,
    }
}

fn refuse(errno: i32) -> Instruction {
    statement(RETURN, RETURN_ERRNO | errno.unsigned_abs())
}

/// Chooses by the architecture of the call; a third one kills.
fn dispatch(native: (u32, Vec<Instruction>), compat: (u32, Vec<Instruction>)) -> Vec<Instruction> {
    let mut program = vec![statement(LOAD, OFFSET_ARCHITECTURE)];
    let native_length = u32::try_from(native.1.len()).unwrap_or(u32::MAX);
    // Conditional jumps reach 255 instructions only.
    program.push(branch(JUMP_EQUAL, native.0, 0, 2));
    program.push(statement(LOAD, OFFSET_NUMBER));
    program.push(statement(JUMP, 3));
    program.push(branch(JUMP_EQUAL, compat.0, 1, 0));
    program.push(statement(RETURN, RETURN_KILL_PROCESS));
    program.push(statement(JUMP, native_length));
    program.extend(native.1);
    program.push(statement(LOAD, OFFSET_NUMBER));
    program.extend(compat.1);
    program
}

/// Chooses between x86_64 and x32 by the bit in the number, which is loaded.
fn split_x32(native: &[Instruction], x32: &[Instruction]) -> Vec<Instruction> {
    let mut program = vec![branch(JUMP_GREATER_EQUAL, X32_BIT, 0, 1)];
    program.push(statement(
        JUMP,
        u32::try_from(native.len()).unwrap_or(u32::MAX),
    ));
    program.extend_from_slice(native);
    program.push(statement(AND, !X32_BIT));
    program.extend_from_slice(x32);
    program
}

/// Emits the search of the loaded number; every path returns.
fn search_tree(ranges: &[(u32, Verdict)]) -> Vec<Instruction> {
    match ranges {
        [] => vec![refuse(libc::EPERM)],
        [(_, verdict)] => leaf(verdict),
        _ => {
            let (left, right) = ranges.split_at(ranges.len() / 2);
            let first = right[0].0;
            let (left, right) = (search_tree(left), search_tree(right));
            let mut program = match u8::try_from(left.len()) {
                Ok(length) => vec![branch(JUMP_GREATER_EQUAL, first, length, 0)],
                Err(_) => vec![
                    branch(JUMP_GREATER_EQUAL, first, 0, 1),
                    statement(JUMP, u32::try_from(left.len()).unwrap_or(u32::MAX)),
                ],
            };
            program.extend(left);
            program.extend(right);
            program
        }
    }
}

fn leaf(verdict: &Verdict) -> Vec<Instruction> {
    match verdict {
        Verdict::Allow => vec![statement(RETURN, RETURN_ALLOW)],
        Verdict::Deny => vec![refuse(libc::EPERM)],
        Verdict::NoSuchCall => vec![refuse(libc::ENOSYS)],
        Verdict::Arguments(alternatives) => {
            let mut program: Vec<Instruction> = alternatives
                .iter()
                .flat_map(|arguments| alternative(arguments))
                .collect();
            program.push(refuse(libc::EPERM));
            program
        }
    }
}

/// Emits one alternative: allows when every argument fits, else falls through.
fn alternative(arguments: &[Argument]) -> Vec<Instruction> {
    let mut program = vec![statement(RETURN, RETURN_ALLOW)];
    for argument in arguments.iter().rev() {
        // The distance from the test to the end of this alternative: few arguments, few instructions.
        let past = u8::try_from(program.len()).unwrap_or(u8::MAX);
        let mut test = vec![statement(LOAD, OFFSET_ARGUMENTS + 8 * argument.index)];
        match argument.test {
            Test::Less(value) => test.push(branch(JUMP_GREATER_EQUAL, value, past, 0)),
            Test::Equal(value) => test.push(branch(JUMP_EQUAL, value, 0, past)),
            Test::Greater(value) => test.push(branch(JUMP_GREATER, value, 0, past)),
            Test::Masked { mask, value } => {
                test.push(statement(AND, mask));
                test.push(branch(JUMP_EQUAL, value, 0, past));
            }
        }
        test.extend(program);
        program = test;
    }
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program on one call, as the kernel would.
    fn verdict(program: &[Instruction], architecture: u32, number: u32, arguments: &[u64]) -> u32 {
        let mut accumulator = 0_u32;
        let mut at = 0;
        loop {
            let instruction = program[at];
            at += 1;
            let mut jump = |taken: bool| {
                at += usize::from(if taken {
                    instruction.jump_true
                } else {
                    instruction.jump_false
                });
            };
            match instruction.code {
                LOAD => {
                    accumulator = match instruction.value {
                        OFFSET_NUMBER => number,
                        OFFSET_ARCHITECTURE => architecture,
                        offset => {
                            let index = ((offset - OFFSET_ARGUMENTS) / 8) as usize;
                            arguments.get(index).copied().unwrap_or(0) as u32
                        }
                    };
                }
                AND => accumulator &= instruction.value,
                JUMP => at += instruction.value as usize,
                JUMP_EQUAL => jump(accumulator == instruction.value),
                JUMP_GREATER => jump(accumulator > instruction.value),
                JUMP_GREATER_EQUAL => jump(accumulator >= instruction.value),
                RETURN => return instruction.value,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    const EPERM: u32 = RETURN_ERRNO | 1;
    const ENOSYS: u32 = RETURN_ERRNO | 38;

    #[test]
    fn every_call_of_every_convention_gets_the_verdict_of_the_profile() {
        let rules = parse_profile(PROFILE, Set::docker_default()).expect("a profile");
        for abi in COLUMNS {
            let numbers = parse_numbers(NUMBERS, abi).expect("a table");
            let program = [
                vec![statement(LOAD, OFFSET_NUMBER)],
                search_tree(&ranges(&rules, &numbers, abi)),
            ]
            .concat();
            for (name, number) in &numbers {
                let named = |rule: &&Rule| {
                    rule.names.contains(name)
                        && (rule.on.is_empty() || rule.on.iter().any(|on| on == abi))
                };
                let of_call: Vec<&Rule> = rules.iter().filter(named).collect();
                let expected = match of_call.as_slice() {
                    [] => EPERM,
                    [rule] if rule.action == Action::NoSuchCall => ENOSYS,
                    several if several.iter().any(|rule| rule.arguments.is_empty()) => RETURN_ALLOW,
                    _ => continue,
                };
                assert_eq!(
                    verdict(&program, 0, *number, &[]),
                    expected,
                    "{name} on {abi}"
                );
            }
            let newest = numbers
                .values()
                .filter(|number| **number < 0x10000)
                .max()
                .expect("a number");
            assert_eq!(verdict(&program, 0, newest + 1, &[]), ENOSYS, "{abi}");
            assert_eq!(verdict(&program, 0, u32::MAX, &[]), ENOSYS, "{abi}");
        }
    }

    fn check(architecture: u32, number: u32, arguments: &[u64], expected: u32) {
        let filter = Filter::docker_default(Set::docker_default()).expect("a filter");
        assert_eq!(
            verdict(&filter.program, architecture, number, arguments),
            expected,
            "{number} {arguments:x?}"
        );
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_architecture_of_the_call_decides() {
        let (native, i386) = (AUDIT_ARCH_X86_64, AUDIT_ARCH_I386);
        // 165 is mount on x86_64 and getresuid on i386; 21 is access and mount.
        check(native, 165, &[], EPERM);
        check(i386, 165, &[], RETURN_ALLOW);
        check(native, 21, &[], RETURN_ALLOW);
        check(i386, 21, &[], EPERM);
        check(native, X32_BIT | 165, &[], EPERM);
        check(native, X32_BIT | 21, &[], RETURN_ALLOW);
        check(0x1234, 21, &[], RETURN_KILL_PROCESS);
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn arguments_are_looked_at_where_the_filter_can() {
        let native = AUDIT_ARCH_X86_64;
        let (socket, clone, clone3, personality, chroot) = (41, 56, 435, 135, 161);
        check(native, socket, &[2], RETURN_ALLOW);
        check(native, socket, &[38], EPERM);
        check(native, socket, &[40], EPERM);
        check(native, socket, &[0xffff_0000_0000_0028], EPERM);
        check(native, socket, &[39], RETURN_ALLOW);
        check(native, clone, &[0x11], RETURN_ALLOW);
        check(native, clone, &[0x1000_0011], EPERM);
        check(native, clone3, &[], ENOSYS);
        check(native, personality, &[0x8], RETURN_ALLOW);
        check(native, personality, &[0x40000], EPERM);
        check(native, chroot, &[], RETURN_ALLOW);
    }

    #[test]
    fn the_program_is_within_the_kernels_limit() {
        let filter = Filter::docker_default(Set::docker_default()).expect("a filter");
        assert!(
            filter.program.len() < 1000,
            "{} instructions",
            filter.program.len()
        );
    }
}
