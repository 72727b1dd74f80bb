//! The page as people see it: a browser, the real server, and fleets on a board.

mod browser;
mod fixture;

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use warmd::web::{Document, LiveBoard, Metrics, Server, WebSection};

use self::browser::{Browser, ENTER, RIGHT, TAB};
use crate::harness::cluster::DEADLINE;
use crate::harness::ports;

const TOKEN: &str = "correct-horse-battery";
const VIEWS: [(&str, &str); 4] =
    [("#/", "Fleet"), ("#/artifacts", "Artifacts"), ("#/transfers", "Transfers"), ("#/starts", "Starts")];
const CONTRAST: &str = include_str!("web/contrast.js");
/// Rules that are in force and move something.
const MOVING: &str = "[...document.styleSheets].flatMap((sheet) => [...sheet.cssRules])\
    .filter((rule) => !(rule instanceof CSSMediaRule) || matchMedia(rule.conditionText).matches)\
    .map((rule) => rule.cssText).filter((text) => /transition|animation|scroll-behavior/.test(text))";

/// A picture for people, where somebody asked for pictures.
async fn shoot(browser: &Browser, name: &str) {
    if let Some(directory) = std::env::var_os("SCREENSHOTS") {
        browser.screenshot(&PathBuf::from(directory).join(format!("{name}.png"))).await;
    }
}

struct Page {
    board: LiveBoard,
    section: WebSection,
    server: Server,
    browser: Browser,
    _token: tempfile::NamedTempFile,
}

impl Page {
    /// Logged in, by keyboard.
    async fn open(board: LiveBoard) -> Option<Self> {
        let browser = Browser::start().await?;
        let token = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(token.path(), TOKEN).unwrap();
        let section = WebSection { token_file: Some(token.path().into()), ..WebSection::default() };
        let server = Server::bind(ports::free(), &section, board.clone(), Metrics::default()).await.unwrap();
        let page = Self { board, section, server, browser, _token: token };
        page.browser.go(&page.url("")).await;
        assert_eq!(page.browser.value("location.pathname").await, "/login");
        shoot(&page.browser, "login").await;
        page.browser.press(&format!("{TOKEN}{ENTER}")).await;
        page.browser.until("document.querySelector('main h1')?.textContent === 'Fleet'").await;
        page.browser.until("performance.getEntriesByName('drawn').length > 0").await;
        Some(page)
    }

    fn url(&self, rest: &str) -> String {
        format!("http://{}/{rest}", self.server.addr())
    }

    async fn view(&self, hash: &str, title: &str) {
        self.browser.value(&format!("location.hash = '{hash}'")).await;
        self.browser.until(&format!("document.querySelector('main h1')?.textContent.startsWith('{title}')")).await;
    }

    /// Presses Tab until the expression is true of the element `at` that has the focus.
    async fn tab_to(&self, expression: &str) {
        for _ in 0..60 {
            self.browser.press(&TAB.to_string()).await;
            if self.browser.value(&format!("(at => {expression})(document.activeElement)")).await == true {
                return;
            }
        }
        panic!("Tab does not lead to where {expression}");
    }

    /// Nothing was asked of others, and nothing went wrong.
    async fn was_quiet(&self) {
        let own = self.url("");
        for (name, event) in self.browser.network().await {
            let url = event["request"]["url"].as_str().unwrap_or(&own);
            // The browser's own first page may load late; no page of another origin can ask for those.
            let is_own =
                [own.as_str(), "data:", "chrome://", "chrome-untrusted://"].iter().any(|place| url.starts_with(place));
            assert!(is_own, "{name}: {url}");
        }
        let console = self.browser.log("browser").await;
        assert!(console.is_empty(), "{console:?}");
    }

    async fn close(self) {
        self.browser.stop().await;
        self.server.shutdown(DEADLINE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_view_is_reached_by_keyboard_and_what_changes_appears() {
    let Some(page) = Page::open(fixture::fleet(24, 12)).await else { return };
    let browser = &page.browser;
    browser.press(&TAB.to_string()).await;
    assert_eq!(browser.value("document.activeElement.className").await, "skip");
    browser.press(&ENTER.to_string()).await;
    assert_eq!(browser.value("document.activeElement.id").await, "main");
    for (hash, title) in VIEWS.into_iter().cycle().skip(1).take(4) {
        page.tab_to(&format!("at.closest('nav') && at.hash === '{hash}'")).await;
        let outline = browser.value("getComputedStyle(document.activeElement).outlineStyle").await;
        assert_ne!(outline, "none", "the focus is seen");
        browser.press(&ENTER.to_string()).await;
        browser.until(&format!("document.querySelector('main h1').textContent === '{title}'")).await;
        assert_eq!(browser.value("document.querySelector('[aria-current]').hash").await, hash);
    }
    page.tab_to("at.matches('.map a')").await;
    let first = browser.value("document.activeElement.hash").await;
    browser.press(&format!("{RIGHT}{RIGHT}")).await;
    let third = browser.value("document.activeElement.hash").await;
    assert_ne!(first, third);
    browser.press(&TAB.to_string()).await;
    assert_eq!(browser.value("document.activeElement.matches('.map a')").await, false, "the map is one stop");
    browser.value(&format!("document.querySelector('.map a[href=\"{}\"]').focus()", third.as_str().unwrap())).await;
    browser.press(&ENTER.to_string()).await;
    browser.until("document.querySelector('main h1').textContent.startsWith('gpu-')").await;

    page.view("#/", "Fleet").await;
    browser.value("window.stays = 1").await;
    let mut node = fixture::node(3, 24);
    node["problems"] =
        json!([{"kind": "disk_full", "text": "3 % are free.", "way_out": "Give the store a lower limit."}]);
    fixture::put(&page.board, &fixture::node_key(3), &node);
    browser.until("document.querySelector('.problems').textContent.includes('Give the store a lower limit.')").await;
    page.board.remove(&fixture::node_key(4));
    browser.until("document.querySelectorAll('.map a').length === 23").await;
    assert_eq!(browser.value("window.stays").await, 1);
    page.was_quiet().await;
    page.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_can_be_read_in_both_themes_and_on_a_phone() {
    let Some(page) = Page::open(fixture::fleet(24, 12)).await else { return };
    let node = format!("#/node/{}", fixture::id(11));
    let views: Vec<(&str, &str)> = VIEWS.into_iter().chain([(node.as_str(), "gpu-0011")]).collect();
    for (width, scheme) in [(1280, "light"), (1280, "dark"), (360, "light"), (360, "dark")] {
        page.browser.resize(width, 900).await;
        page.browser.scheme(scheme).await;
        for (hash, title) in &views {
            page.view(hash, title).await;
            page.browser
                .value("document.querySelectorAll('details').forEach((details) => { details.open = true })")
                .await;
            let complaints = page.browser.value(CONTRAST).await;
            assert_eq!(complaints, json!([]), "{title}, {scheme}");
            let overflow = page.browser.value("document.documentElement.scrollWidth - innerWidth").await;
            assert!(overflow.as_i64().unwrap() <= 0, "{title} is {overflow} pixels too wide for {width}");
            shoot(&page.browser, &format!("{}-{width}-{scheme}", title.to_lowercase())).await;
        }
    }
    page.was_quiet().await;
    page.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_theme_that_somebody_chose_holds_whatever_the_system_says() {
    const LIGHT: &str = "rgb(245, 245, 243)";
    const DARK: &str = "rgb(18, 20, 23)";
    let Some(page) = Page::open(fixture::fleet(3, 1)).await else { return };
    let browser = &page.browser;
    let ground = || browser.value("getComputedStyle(document.body).backgroundColor");
    for (theme, system, expected) in [("light", "dark", LIGHT), ("dark", "light", DARK), ("system", "light", LIGHT)] {
        browser.scheme(system).await;
        page.tab_to("at.id === 'theme'").await;
        browser.press(&ENTER.to_string()).await;
        for visit in ["chosen", "opened again"] {
            let label = browser.value("document.getElementById('theme').textContent").await;
            assert_eq!((label, ground().await), (format!("Theme: {theme}").into(), expected.into()), "{visit}");
            browser.go("about:blank").await;
            browser.go(&page.url("")).await;
            browser.until("performance.getEntriesByName('drawn').length > 0").await;
        }
    }
    browser.scheme("dark").await;
    assert_eq!(ground().await, DARK, "it is the system's again");
    assert_eq!(browser.value("localStorage.length").await, 0);
    page.was_quiet().await;
    page.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_moves_for_whoever_wants_no_motion() {
    let Some(page) = Page::open(fixture::fleet(8, 1)).await else { return };
    page.view("#/transfers", "Transfers").await;
    for (motion, moves) in [("no-preference", true), ("reduce", false)] {
        page.browser.motion(motion).await;
        let rules = page.browser.value(MOVING).await;
        assert_eq!(!rules.as_array().unwrap().is_empty(), moves, "{motion}: {rules}");
    }
    let mut node = fixture::node(1, 8);
    node["transfers"][0]["done"] = node["transfers"][0]["total"].clone();
    fixture::put(&page.board, &fixture::node_key(1), &node);
    page.browser.until("[...document.querySelectorAll('main progress')].some((bar) => bar.value === bar.max)").await;
    assert_eq!(page.browser.value("document.getAnimations().length").await, 0);
    page.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_listens_is_told_what_matters_once_and_seldom() {
    let Some(page) = Page::open(fixture::fleet(24, 1)).await else { return };
    let browser = &page.browser;
    let told = "document.querySelector('[role=status]')";
    assert_eq!(browser.value(&format!("{told}.textContent")).await, "22 of 24 nodes ready, 4 with problems.");
    assert_ne!(browser.value(&format!("getComputedStyle({told}).display")).await, "none", "it is read aloud");
    let watch =
        format!("new MutationObserver(() => said.push({told}.textContent)).observe({told}, {{childList: true}})");
    browser.value(&format!("(window.said = [], {watch}, 1)")).await;
    // The time between two things that are said is over, and begins again when this test says so.
    browser.value("(window.at = performance.now() + 60000, performance.now = () => window.at, 1)").await;
    page.board.remove(&fixture::node_key(4));
    browser.until("said.length > 0").await;
    let mut node = fixture::node(3, 24);
    node["problems"] = json!([{"kind": "disk_full", "text": "3 % are free.", "way_out": "Make room."}]);
    fixture::put(&page.board, &fixture::node_key(3), &node);
    browser.until("document.querySelector('.problems').textContent.includes('Make room.')").await;
    node["totals"]["hits"] = json!(1_000_000);
    fixture::put(&page.board, &fixture::node_key(3), &node);
    page.board.remove(&fixture::node_key(6));
    browser.until("document.querySelectorAll('.map a').length === 22").await;
    assert_eq!(
        browser.value("said").await,
        json!(["21 of 23 nodes ready, 4 with problems."]),
        "the rest waits its time"
    );
    browser.value("window.at += 60000").await;
    page.board.remove(&fixture::node_key(8));
    browser.until("said.length > 1").await;
    assert_eq!(browser.value("said[1]").await, "19 of 21 nodes ready, 5 with problems.");
    page.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn text_from_nodes_stays_text() {
    let board = fixture::fleet(2, 2);
    fixture::put(&board, &"node/evil".parse().unwrap(), &fixture::hostile_node());
    fixture::put(&board, &"identity/evil".parse().unwrap(), &fixture::hostile_identity());
    for (n, odd) in
        [json!(null), json!([]), json!("x"), json!(7), json!({"starts": {}, "problems": [[]]})].iter().enumerate()
    {
        fixture::put(&board, &format!("node/odd-{n}").parse().unwrap(), odd);
        fixture::put(&board, &format!("identity/odd-{n}").parse().unwrap(), odd);
        fixture::put(&board, &format!("unknown/odd-{n}").parse().unwrap(), odd);
    }
    let Some(page) = Page::open(board).await else { return };
    page.browser.resize(360, 800).await;
    for (hash, title) in
        VIEWS.into_iter().chain([("#/node/evil", "<img"), ("#/node/odd-0", "odd-0"), ("#/node/%zz", "Node")])
    {
        page.view(hash, title).await;
        page.browser.value("document.querySelectorAll('details').forEach((details) => { details.open = true })").await;
        let shown = page.browser.value("document.body.textContent").await;
        let shown = shown.as_str().unwrap();
        let hidden: Vec<char> =
            shown.chars().filter(|c| "\u{202e}\u{2066}\u{200f}\u{0}\u{7}\u{1b}".contains(*c)).collect();
        assert!(hidden.is_empty(), "{title}: {hidden:?}");
        if !title.starts_with("odd") && title != "Node" {
            assert!(shown.contains("<img src=x onerror="), "{title} shows it");
        }
        assert_eq!(page.browser.value("document.querySelectorAll('main img, main script').length").await, 0, "{title}");
        assert_eq!(page.browser.value("window.hacked ?? null").await, Value::Null);
        let overflow = page.browser.value("document.documentElement.scrollWidth - innerWidth").await;
        assert!(overflow.as_i64().unwrap() <= 0, "{title}: {overflow} pixels too wide");
        shoot(&page.browser, &format!("hostile-{}", hash.replace(['/', '#'], ""))).await;
    }
    page.was_quiet().await;
    page.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_stream_is_told_and_taken_up_again() {
    let Some(mut page) = Page::open(fixture::fleet(3, 1)).await else { return };
    let addr = page.server.addr();
    page.server.shutdown(DEADLINE).await;
    page.browser.until("!document.getElementById('lost').hidden").await;
    page.browser.until("document.getElementById('link').textContent.startsWith('Next try in')").await;
    assert_eq!(
        page.browser.value("document.querySelectorAll('.map a').length").await,
        3,
        "what was known is still shown"
    );
    shoot(&page.browser, "lost").await;
    page.server = Server::bind(addr, &page.section, page.board.clone(), Metrics::default()).await.unwrap();
    page.board.remove(&fixture::node_key(0));
    page.browser
        .until("document.getElementById('lost').hidden && document.querySelectorAll('.map a').length === 2")
        .await;
    page.close().await;
}

/// Milliseconds that the page's main thread worked since it was opened, as Chromium counts them.
async fn worked(page: &Page) -> f64 {
    let metrics = page.browser.devtools("Performance.getMetrics", json!({})).await;
    let metrics = metrics["metrics"].as_array().unwrap().clone();
    let task = metrics.iter().find(|metric| metric["name"] == "TaskDuration").unwrap();
    task["value"].as_f64().unwrap() * 1000.0
}

fn received(events: &[(String, Value)]) -> u64 {
    let data = events.iter().filter(|(name, _)| name == "Network.dataReceived");
    data.map(|(_, event)| event["encodedDataLength"].as_u64().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures: run it alone, with --nocapture"]
#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
async fn what_a_thousand_nodes_cost() {
    const NODES: usize = 1000;
    const UPDATES: usize = 20;
    let Some(page) = Page::open(fixture::fleet(NODES, NODES)).await else { return };
    page.browser.devtools("Performance.enable", json!({})).await;
    page.browser.network().await;
    for _ in 0..3 {
        page.browser.go("about:blank").await;
        page.browser.network().await;
        page.browser.go(&page.url("")).await;
        page.browser.until("performance.getEntriesByName('drawn').length > 0").await;
        let drawn = page.browser.value("performance.getEntriesByName('drawn')[0].startTime").await;
        let loaded = received(&page.browser.network().await);
        println!("load: {loaded} bytes, first full render after {:.0} ms", drawn.as_f64().unwrap());
    }
    for (hash, title) in VIEWS {
        page.view(hash, title).await;
        for nodes in [1, 100] {
            let before = worked(&page).await;
            page.browser.network().await;
            for update in 0..UPDATES {
                page.browser.value("performance.clearMarks()").await;
                page.board.update(|board| {
                    for n in 0..nodes {
                        let mut node = fixture::node(n, NODES);
                        node["totals"]["hits"] = json!(1000 * update + n);
                        board.set(&fixture::node_key(n), Document::new(&node).unwrap()).unwrap();
                    }
                });
                page.browser.until("performance.getEntriesByName('drawn').length > 0").await;
            }
            let bytes = received(&page.browser.network().await) / UPDATES as u64;
            let spent = (worked(&page).await - before) / UPDATES as f64;
            println!("{title}: an update of {nodes} nodes is {bytes} bytes and {spent:.1} ms of the main thread");
        }
    }
    tokio::time::timeout(Duration::from_secs(60), page.close()).await.unwrap();
}
