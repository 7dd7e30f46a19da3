from tpusd.gallery.prompt_labels import prompt_labels


def test_a_row_is_called_by_its_prompt_and_by_what_differs():
    prompts = [(4, "a cat on a mat"), (4, "a dog on a mat"), (2, "x  y"), (2, "x  y")]
    assert prompt_labels(prompts) == {2: "x  y", 4: "a {cat | dog} on a mat"}
    assert list(prompt_labels(prompts)) == [2, 4]


def test_prompts_that_begin_or_end_as_others_lose_no_word():
    assert prompt_labels([(0, "a a"), (0, "a a a")]) == {0: "a a { | a}"}
    assert prompt_labels([(0, "one"), (0, "other thing")]) == {0: "{one | other thing}"}
    assert prompt_labels([(0, ""), (0, "b")]) == {0: "{ | b}"}


def test_of_many_prompts_three_are_listed():
    assert prompt_labels((0, f"a {word} here") for word in "bcdef") == {0: "a {b | c | d | …} here"}
