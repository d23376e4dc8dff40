//! The command line: each subcommand is one call into the module that owns the subject.
//!
//! The flags of `server` and `try` are the rows of [`config::KEYS`]; nothing here knows a setting by name unless a
//! subcommand is about it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use crate::config::{self, Config, KEYS, Settings};
use crate::{run, sample, telemetry, trial};

pub fn main() -> ExitCode {
    let matches = command().get_matches();
    match dispatch(&matches) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("coracle: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The whole tree; also what `completion` and the reference are made from.
pub fn command() -> Command {
    let settings = |command: Command| {
        KEYS.iter().fold(command.arg(config_file()), |command, key| {
            let help = match key.default {
                "" | "false" => key.help.to_string(),
                default => format!("{} [default: {default}]", key.help),
            };
            let arg = Arg::new(key.name).long(key.name).help(help);
            command.arg(match key.is_switch {
                true => arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("BOOL"),
                false => arg.value_name("VALUE"),
            })
        })
    };
    let data_dir = || Arg::new("data-dir").long("data-dir").value_name("VALUE").help("Folder that holds all state");
    let command_after_dashes = Arg::new("command")
        .last(true)
        .num_args(0..)
        .value_parser(value_parser!(OsString))
        .help("Command to run in the cluster's environment");
    Command::new("coracle")
        .about("A whole Kubernetes cluster in one executable")
        .version(run::VERSION)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(settings(Command::new("server").about("Run a control plane and, unless disabled, a node")))
        .subcommand(
            settings(Command::new("try").about("Run a throw-away cluster, gone on exit"))
                .arg(Arg::new("sample").long("sample").action(ArgAction::SetTrue).help("Deploy the sample workload"))
                .arg(command_after_dashes),
        )
        .subcommand(
            Command::new("kubeconfig").about("Print the administrator's kubeconfig").arg(config_file()).arg(data_dir()).arg(
                Arg::new("merge")
                    .long("merge")
                    .action(ArgAction::SetTrue)
                    .help("Merge it into the invoking user's kubeconfig and switch to it"),
            ),
        )
        .subcommand(Command::new("status").about("Show how the cluster is, on one screen").arg(config_file()).arg(data_dir()))
        .subcommand(
            Command::new("images")
                .about("Images of this node")
                .subcommand_required(true)
                .subcommand(
                    Command::new("import")
                        .about("Import OCI or docker archives")
                        .arg(config_file())
                        .arg(data_dir())
                        .arg(Arg::new("archive").required(true).num_args(1..).value_parser(value_parser!(PathBuf))),
                )
                .subcommand(Command::new("list").about("List images").arg(config_file()).arg(data_dir())),
        )
        .subcommand(Command::new("version").about("Print versions"))
        .subcommand(
            Command::new("completion")
                .about("Print a shell completion script")
                .arg(Arg::new("shell").required(true).value_parser(value_parser!(clap_complete::Shell))),
        )
        .subcommand(Command::new("echo").hide(true).arg(Arg::new("port").default_value("8080").value_parser(value_parser!(u16))))
        .subcommand(Command::new("fetch").hide(true).arg(Arg::new("url").required(true)))
        .subcommand(Command::new("load").hide(true).arg(Arg::new("url").required(true)))
        .subcommand(Command::new("sample-image").hide(true).arg(Arg::new("archive").required(true).value_parser(value_parser!(PathBuf))))
        .subcommand(
            Command::new("try-command")
                .hide(true)
                .arg(Arg::new("parent").required(true).value_parser(value_parser!(i32)))
                .arg(Arg::new("command").required(true).last(true).num_args(1..).value_parser(value_parser!(OsString))),
        )
        .subcommand(Command::new("try-holder").hide(true).arg(Arg::new("dir").required(true).value_parser(value_parser!(PathBuf))))
}

fn config_file() -> Arg {
    Arg::new("config")
        .long("config")
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .help(format!("Settings file [default: {}]", config::FILE))
}

fn dispatch(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let (name, matches) = matches.subcommand().expect("clap requires one");
    match name {
        "server" => {
            // What these say at info is about every term and every query.
            telemetry::logs("info,openraft=warn,hickory_server=warn,hickory_proto=warn");
            run::server(settings(matches)?.config()?)
        }
        "try" => {
            telemetry::logs("warn");
            let command = matches.get_many::<OsString>("command").map(|c| c.cloned().collect()).unwrap_or_default();
            trial::run(settings(matches)?.0, command, matches.get_flag("sample"))
        }
        "kubeconfig" => done(run::kubeconfig(&settings(matches)?.config()?, matches.get_flag("merge"))),
        "status" => run::status(settings(matches)?.config()?),
        "images" => images(matches),
        "version" => {
            println!("coracle {}\nKubernetes {}", run::VERSION, run::KUBERNETES_VERSION);
            Ok(ExitCode::SUCCESS)
        }
        "completion" => {
            let shell = *matches.get_one::<clap_complete::Shell>("shell").expect("required");
            clap_complete::generate(shell, &mut command(), "coracle", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        "echo" => done(run::block_on(sample::echo(*matches.get_one("port").expect("has a default")))),
        "fetch" => done(run::block_on(sample::fetch(matches.get_one::<String>("url").expect("required")))),
        "load" => done(run::block_on(sample::load(matches.get_one::<String>("url").expect("required")))),
        "sample-image" => {
            let target: &PathBuf = matches.get_one("archive").expect("required");
            let executable = std::env::current_exe()?;
            sample::pack_image(&executable, target).with_context(|| format!("cannot write {}", target.display()))?;
            Ok(ExitCode::SUCCESS)
        }
        "try-command" => {
            let command: Vec<OsString> = matches.get_many::<OsString>("command").expect("required").cloned().collect();
            done(trial::become_command(*matches.get_one("parent").expect("required"), &command))
        }
        "try-holder" => done(trial::hold(matches.get_one::<PathBuf>("dir").expect("required"))),
        other => anyhow::bail!("{other} is not a command"),
    }
}

fn images(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let (name, matches) = matches.subcommand().expect("clap requires one");
    let config = settings(matches)?.config()?;
    match name {
        "import" => {
            let archives: Vec<&Path> = matches.get_many::<PathBuf>("archive").expect("required").map(PathBuf::as_path).collect();
            done(run::import_images(&config, &archives))
        }
        "list" => done(run::list_images(&config)),
        other => anyhow::bail!("{other} is not a command"),
    }
}

fn done(result: anyhow::Result<()>) -> anyhow::Result<ExitCode> {
    result.map(|()| ExitCode::SUCCESS)
}

/// Settings of file, variables and the flags of one subcommand, not yet validated.
struct Loaded(Settings);

impl Loaded {
    fn config(&self) -> anyhow::Result<Config> {
        Ok(Config::from_settings(&self.0)?)
    }
}

fn settings(matches: &ArgMatches) -> anyhow::Result<Loaded> {
    let file = matches.get_one::<PathBuf>("config").map(PathBuf::as_path);
    let mut settings = Settings::load(file, std::env::vars())?;
    for key in KEYS {
        let given = matches.try_get_one::<String>(key.name).ok().flatten();
        if let Some(value) = given {
            settings.set(key.name, value.clone(), format!("from the flag --{}", key.name));
        }
    }
    Ok(Loaded(settings))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_tree_is_consistent() {
        super::command().debug_assert();
    }
}
