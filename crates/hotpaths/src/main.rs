//! Runs one workload so often: `hotpaths NAME ROUNDS`; without arguments it lists them.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let workloads = hotpaths::workloads();
    match &arguments[..] {
        [] => workloads
            .iter()
            .for_each(|workload| println!("{}", workload.name)),
        [name, rounds] => {
            let workload = workloads.iter().find(|workload| workload.name == name);
            let (Some(workload), Ok(rounds)) = (workload, rounds.parse::<u32>()) else {
                eprintln!("no workload {name:?}, or no number of rounds: {rounds:?}");
                return ExitCode::from(2);
            };
            (0..rounds).for_each(|_| workload.round());
        }
        _ => {
            eprintln!("usage: hotpaths [NAME ROUNDS]");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
