use proptest::prelude::*;

use super::*;

const ENGINE: &str = "sql@0a1b";
const CLIENT: &str = "sql";

/// What is sent for each chunk, and at the end.
fn sent(framing: Framing, chunks: &[&[u8]]) -> Vec<String> {
    let mut rewriter = Rewriter::new(framing, Some((ENGINE, CLIENT)));
    let mut sent: Vec<_> = chunks.iter().map(|chunk| rewriter.push(Bytes::copy_from_slice(chunk))).collect();
    sent.push(rewriter.finish());
    sent.into_iter().map(|bytes| String::from_utf8(bytes.to_vec()).unwrap()).collect()
}

fn cut(text: &str, places: &[prop::sample::Index]) -> Vec<String> {
    let mut places: Vec<usize> = places.iter().map(|place| place.index(text.len() + 1)).collect();
    places.extend([0, text.len()]);
    places.sort_unstable();
    places.windows(2).map(|pair| text[pair[0]..pair[1]].to_owned()).collect()
}

const CHAT: &str = r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","model":"sql@0a1b","choices":[{"delta":{"content":"model\":\"sql@0a1b\""},"model":"sql@0a1b"}]}"#;

#[test]
fn each_event_goes_out_with_the_chunk_that_brought_it() {
    let event = format!("data: {CHAT}\n\n");
    let wanted = format!("data: {}\n\n", CHAT.replacen(ENGINE, CLIENT, 1));
    let end = "data: [DONE]\n\n";
    let out = sent(Framing::Events, &[event.as_bytes(), b": keep-alive\n\n", event.as_bytes(), end.as_bytes()]);
    assert_eq!(out, [&wanted, ": keep-alive\n\n", &wanted, end, ""]);
}

#[test]
fn half_an_event_passes_but_for_the_beginning_of_what_can_be_the_name() {
    let out = sent(Framing::Events, &[b"data: {\"id\":1,\"model\":\"sql@", b"0a1", b"b\",\"x\":", b"2}\n\n"]);
    assert_eq!(out, ["data: {\"id\":1,\"model\":", "", "\"sql\",\"x\":", "2}\n\n", ""]);
    let other = sent(Framing::Events, &[b"data: {\"model\":\"sq", b"uirrel", b"\"}\n\n"]);
    assert_eq!(other, ["data: {\"model\":", "\"squirrel", "\"}\n\n", ""]);
}

#[test]
fn the_name_is_found_where_each_protocol_has_it() {
    for text in [
        r#"{"type":"message_start","message":{"id":"m","model":"NAME","usage":{"input_tokens":1}}}"#,
        r#"{"type":"response.created","response":{"object":"response","model":"NAME"}}"#,
        r#"{"object":"list","data":[],"model":"NAME"}"#,
    ] {
        let (from, to) = (text.replace("NAME", ENGINE), text.replace("NAME", CLIENT));
        let event = format!("event: x\r\ndata:{from}\r\n\r\n");
        assert_eq!(sent(Framing::Events, &[event.as_bytes()])[0], format!("event: x\r\ndata:{to}\r\n\r\n"));
        assert_eq!(sent(Framing::Json, &[from.as_bytes()])[0], to);
    }
}

#[test]
fn what_a_model_writes_is_never_changed() {
    let text = r#"{"choices":[{"message":{"model":"sql@0a1b","content":"{\"model\":\"sql@0a1b\"}"}}],"error":{"model":"sql@0a1b"},"model":"sql@0a1bc"}"#;
    assert_eq!(sent(Framing::Json, &[text.as_bytes()])[0], text);
    assert_eq!(sent(Framing::Opaque, &[CHAT.as_bytes()])[0], CHAT);
}

#[test]
fn what_is_no_json_passes_and_the_next_event_is_rewritten_again() {
    let out =
        sent(Framing::Events, &[b"data: {\"model\":\"sql@", b"\ndata: x\n\n", b"data: {\"model\":\"sql@0a1b\"}\n\n"]);
    assert_eq!(out, ["data: {\"model\":", "\"sql@\ndata: x\n\n", "data: {\"model\":\"sql\"}\n\n", ""]);
    assert_eq!(sent(Framing::Json, &[b"{\"model\":\"sql@0a"]), ["{\"model\":", "\"sql@0a"]);
}

#[test]
fn an_unchanged_chunk_is_not_copied() {
    let chunk = Bytes::from_static(b"data: {\"model\":\"base\",\"choices\":[]}\n\n");
    for names in [None, Some((ENGINE, CLIENT))] {
        assert_eq!(Rewriter::new(Framing::Events, names).push(chunk.clone()).as_ptr(), chunk.as_ptr());
    }
}

#[test]
fn it_is_known_when_nothing_of_an_event_is_open() {
    let mut rewriter = Rewriter::new(Framing::Events, None);
    assert!(rewriter.between_events());
    for (chunk, between) in
        [("data: {}\n\n", true), ("d", false), ("ata: {}\n", false), ("\n", true), (": c\r\n\r", true), ("\n", true)]
    {
        rewriter.push(Bytes::from_static(chunk.as_bytes()));
        assert_eq!(rewriter.between_events(), between, "{chunk:?}");
    }
}

#[test]
fn tokens_are_what_the_engine_says_or_the_number_of_events() {
    let tokens = |framing, text: &'static str| {
        let mut rewriter = Rewriter::new(framing, None);
        text.as_bytes().chunks(3).for_each(|chunk| drop(rewriter.push(Bytes::from_static(chunk))));
        rewriter.tokens()
    };
    assert_eq!(
        tokens(Framing::Json, r#"{"usage":{"prompt_tokens":5,"total_tokens":1207,"completion_tokens":2}}"#),
        1207
    );
    assert_eq!(tokens(Framing::Events, "data: {\"a\":1}\n\ndata: {}\n\n: x\n\ndata: [DONE]\n\n"), 2);
    let anthropic = "data: {\"message\":{\"usage\":{\"input_tokens\":9,\"output_tokens\":1}}}\n\ndata: {\"usage\":{\"output_tokens\":20}}\n\n";
    assert_eq!(tokens(Framing::Events, anthropic), 29);
}

#[test]
fn a_whole_body_that_ends_within_the_name_loses_nothing() {
    let whole = |body: &'static str| {
        let mut rewriter = Rewriter::new(Framing::Json, Some((ENGINE, CLIENT)));
        rewriter.whole(Bytes::from(body))
    };
    assert_eq!(whole(r#"{"model":"sql@"#), r#"{"model":"sql@"#);
    assert_eq!(whole(r#"{"id":1,"model":"sql@0a1b"}"#), format!(r#"{{"id":1,"model":"{CLIENT}"}}"#));
}

proptest! {
    #[test]
    fn the_result_does_not_depend_on_how_the_body_is_cut(
        places in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        newline in "\n|\r\n", name in "sql@0a1b|sql@0a1|sql|sql@0a1bc|x", events in 1usize..4
    ) {
        let event = |name: &str| format!("event: e{newline}data: {}{newline}{newline}: c{newline}{newline}", CHAT.replacen(ENGINE, name, 1));
        let wanted = event(if name == ENGINE { CLIENT } else { &name }).repeat(events);
        let chunks = cut(&event(&name).repeat(events), &places);
        let chunks: Vec<&[u8]> = chunks.iter().map(|chunk| chunk.as_bytes()).collect();
        prop_assert_eq!(sent(Framing::Events, &chunks).concat(), wanted);
    }

    #[test]
    fn nothing_is_lost_or_held_beyond_a_name_whatever_comes(
        text in "([a-z\"{}:, \n\r]|data: |model|\"model\":\"sql@0a1b\"|\\{){0,60}",
        places in prop::collection::vec(any::<prop::sample::Index>(), 0..12), events in any::<bool>()
    ) {
        let framing = if events { Framing::Events } else { Framing::Json };
        let mut rewriter = Rewriter::new(framing, Some(("sql@0a1b", "sql@0a1B")));
        let (mut given, mut taken) = (0, Vec::new());
        for chunk in cut(&text, &places) {
            given += chunk.len();
            taken.extend_from_slice(&rewriter.push(Bytes::from(chunk)));
            prop_assert!(given - taken.len() <= "\"sql@0a1b\"".len());
        }
        taken.extend_from_slice(&rewriter.finish());
        prop_assert_eq!(String::from_utf8(taken).unwrap().to_lowercase(), text);
    }
}
