//! What deaths of `fetch` cost at the server while it logs in and mints: what is served lives, what
//! was heard of is revoked.

use super::deaths::{assert_nothing_left, living, replace, report, started};
use crate::rig::agent::{Agent, Place, Setup};
use crate::rig::line::Line;
use crate::rig::process::signal;
use crate::rig::server::{CALM, Lives, Scene, Tenant, Which};
use crate::rig::{config, wait_until, wait_until_or};
use baofs::clock::{Clock, Jitter, RealClock};
use nix::sys::signal::{Signal, kill};
use serde_json::json;
use std::time::Duration;

in_each_scene!(
    a_storm_over_short_leases,
    a_mint_that_nobody_heard,
    a_login_that_nobody_heard,
    a_revocation_that_nobody_heard,
    a_death_at_any_moment_of_the_start,
);

/// At this interval, at least, a lease of 2 s that nobody disturbs has a successor.
const SUCCESSION: Duration = Duration::from_millis(1600);

/// The usual configuration over a line.
fn setup(scene: Scene, name: &str, lives: Lives, delay: Duration) -> (Tenant, Line, Setup) {
    let tenant = scene.tenant(name, lives);
    tenant.put("note", json!({ "text": "note" }));
    let line = Line::to(&tenant.url(), delay);
    let setup = Setup::new(
        scene.world,
        &tenant,
        &config::usual(&tenant).replace(&tenant.url(), &line.url()),
    );
    (tenant, line, setup)
}

/// User and password of one lease.
fn credential(agent: &Agent) -> (String, String) {
    wait_until("user and password are of one lease", || {
        let (user, password) = (agent.try_read("user")?, agent.try_read("password")?);
        (agent.try_read("user")? == user).then_some((user, password))
    })
}

fn a_storm_over_short_leases(scene: Scene) {
    const KILLS: u32 = 150;
    let lives = Lives {
        token: 6,
        lease: 2,
        lease_max: 2,
    };
    let (tenant, line, setup) = setup(scene, "mint-storm", lives, Duration::from_millis(50));
    let begin = RealClock.now();
    let agent = started(setup);
    let entry = agent.pid();
    let (mut dice, mut looks, mut dead) = (Jitter::seeded(7), 0, 0);
    for kills in 0..KILLS {
        let _ = living(entry, "fetch").map(|pid| kill(pid, Signal::SIGKILL));
        // Again soon, while a login and a mint follow from the last kill; or at any time.
        let longest = Duration::from_millis(if dice.unit() < 0.4 { 40 } else { 300 });
        std::thread::sleep(dice.between(Duration::ZERO, longest));
        if kills % 5 == 0 {
            let (user, password) = credential(&agent);
            looks += 1;
            dead += u32::from(!tenant.admits(&user, &password));
        }
    }
    let alive = || {
        let (user, password) = credential(&agent);
        tenant.admits(&user, &password).then_some(())
    };
    wait_until_or("what is served is alive", || agent.log(), alive);
    let (current, deaths) = (agent.role("fetch"), report(&agent).roles.fetch_deaths);
    assert!(deaths > 100, "{deaths} deaths only");
    let calm = RealClock.now().since(begin).as_millis() / SUCCESSION.as_millis() + 1;
    let (hits, lost) = (
        line.hits(),
        wait_until("a report", || {
            Some(report(&agent).session.lost_logins as usize)
        }),
    );
    assert_eq!(agent.role("fetch"), current);
    let end = agent.stop();
    let (logins, mints, left) = (
        tenant.logins(),
        tenant.reads(&tenant.creds()),
        tenant.tokens(),
    );
    let said = format!(
        "{deaths} deaths, {hits} hit: {logins} logins ({lost} lost), {mints} mints ({calm} without deaths at most), \
         {left} tokens left; {dead} of {looks} looks found a dead credential"
    );
    println!("{scene:?}: {said}");
    assert_eq!(end.code, 0, "{}", end.stderr);
    assert!(left <= lost, "{said}\n{}", end.stderr);
    wait_until("the leases are gone with their tokens", || {
        (tenant.leases() == 0).then_some(())
    });
    wait_until("tokens that nobody can name end by themselves", || {
        (tenant.tokens() == 0).then_some(())
    });
    // Between the journal and the line a kill is seen by `fetch` alone.
    let hits = hits + KILLS as usize / 20;
    assert!(logins <= 1 + hits, "{said}\n{}", end.stderr);
    assert!(
        mints as u128 <= calm + hits as u128,
        "{said}\n{}",
        end.stderr
    );
}

/// Kills `fetch` after the server has answered and before the answer came; then answers pass again.
fn lose_answer(agent: &Agent, line: &Line, done: impl Fn() -> bool) {
    wait_until_or(
        "the server has answered",
        || agent.log(),
        || done().then_some(()),
    );
    replace(agent, "fetch", Signal::SIGKILL);
    line.hold(false);
}

fn a_mint_that_nobody_heard(scene: Scene) {
    let lives = Lives {
        token: 3600,
        lease: 3,
        lease_max: 3,
    };
    let (tenant, line, setup) = setup(scene, "lost-mint", lives, Duration::ZERO);
    let agent = started(setup);
    let (user, creds) = (agent.read("user"), tenant.creds());
    wait_until("the renewal is over, and the next is a mint", || {
        (tenant.leases() == 1).then_some(())
    });
    let before = tenant.reads(&creds);
    line.hold(true);
    lose_answer(&agent, &line, || tenant.reads(&creds) > before);
    let new = agent.read_after("user", &user);
    let (logins, mints) = (tenant.logins(), tenant.reads(&creds));
    assert_eq!((logins, mints - before), (2, 2), "{}", agent.log());
    assert!(tenant.knows(&new));
    assert_eq!(report(&agent).session.lost_logins, 0);
    assert_nothing_left(&tenant, &agent.stop());
}

/// Nothing runs yet, and nothing is served.
fn a_login_that_nobody_heard(scene: Scene) {
    let lives = if scene.which == Which::Real {
        CALM
    } else {
        Lives { token: 8, ..CALM }
    };
    let (tenant, line, setup) = setup(scene, "lost-login", lives, Duration::ZERO);
    line.hold(true);
    let agent = setup.place(Place::UnderShell).start();
    lose_answer(&agent, &line, || tenant.logins() == 1);
    agent.wait_for_line("started");
    let reported = || Some(report(&agent)).filter(|report| report.session.lost_logins == 1);
    wait_until_or("the lost login is reported", || agent.log(), reported);
    assert_eq!(
        (
            tenant.logins(),
            tenant.reads(&tenant.creds()),
            tenant.tokens()
        ),
        (2, 1, 2),
        "{}",
        agent.log()
    );
    let end = agent.stop();
    assert_eq!(end.code, 0, "{}", end.stderr);
    assert_eq!(tenant.tokens(), 1, "the token that nobody can name");
    wait_until("the leases are gone with their token", || {
        (tenant.leases() == 0).then_some(())
    });
}

fn a_revocation_that_nobody_heard(scene: Scene) {
    let (tenant, line, setup) = setup(scene, "lost-revocation", CALM, Duration::ZERO);
    let agent = started(setup);
    line.hold(true);
    agent.signal(Signal::SIGTERM);
    lose_answer(&agent, &line, || tenant.tokens() == 0);
    assert_nothing_left(&tenant, &agent.end());
}

/// The application starts once, and with all of its secrets.
fn a_death_at_any_moment_of_the_start(scene: Scene) {
    let name = |moment: u64| format!("start-dies-{moment}");
    let lost: u32 = (0..20)
        .map(|moment| {
            let (tenant, _line, setup) = setup(scene, &name(moment), CALM, Duration::from_millis(10));
            let agent = setup.script("cd /app/secrets; echo started $(cat user password note | wc -c); exec sleep 1000").start();
            let entry = agent.pid();
            std::thread::sleep(Duration::from_millis(moment * 6));
            let fetch = wait_until("fetch runs", || living(entry, "fetch"));
            signal(fetch, Signal::SIGKILL);
            wait_until_or("the application has started", || agent.log(), || agent.printed().contains("started").then_some(()));
            let bytes = agent.read("user").len() + agent.read("password").len() + "note".len();
            assert_eq!(agent.printed().trim(), format!("started {bytes}"), "killed after {moment} moments\n{}", agent.log());
            let lost = wait_until("a report", || Some(report(&agent).session.lost_logins));
            let end = agent.stop();
            assert!(tenant.tokens() <= lost as usize, "{}", end.stderr);
            wait_until("the leases are gone with their tokens", || (tenant.leases() == 0).then_some(()));
            lost
        })
        .sum();
    println!("{scene:?}: {lost} of 20 logins were lost");
}
