"""What the embedded model says: ELIZA, by NLTK's script in English and one of our own in Chinese.

Joseph Weizenbaum wrote the first ELIZA in 1966: patterns over what the user says, and answers that turn it around. It
understands nothing, says so when it is asked, and needs neither a network nor a key.
"""

import random
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

# Of a long message only the start is turned around.
MAX_CHARACTERS = 400
_CJK = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")

Pairs = Iterable[tuple[str, Sequence[str]]]

INTRODUCTION_ZH = (
    "你好！我是 ELIZA，内嵌在这个聊天后端里的离线模型。"
    "1966 年，约瑟夫·魏岑鲍姆在麻省理工学院写出了最早的 ELIZA；我是它的一个小小后代，靠匹配句式来回应你，"
    "并不真正理解你说的话，也不掌握世界上的知识。"
    "好处是：不需要网络，也不需要密钥，你就可以用我体验这里的全部功能——流式输出、停止、重新生成、多端同步和用量统计。"
    "想接入真正的大模型，请在 .env 里设置 OPENAI_API_KEY（使用其他兼容 OpenAI 接口的服务时，再设置 OPENAI_API_BASE），"
    "然后重启服务。"
    "在那之前，不妨跟我说说：你最近在想些什么？"
)
INTRODUCTION_EN = (
    "Hello! I am ELIZA, the offline model embedded in this chat backend. "
    "Joseph Weizenbaum wrote the first ELIZA at MIT in 1966, and I am a small descendant: I match patterns in what you "
    "say and turn them around, but I do not really understand you, and I know nothing about the world. "
    "What I am good for is trying everything out without a network or a key: streaming, stopping, regenerating, and "
    "the accounting of usage. "
    "To talk to a real model, set OPENAI_API_KEY in .env (and OPENAI_API_BASE for another OpenAI-compatible service), "
    "then restart the server. "
    "Until then: what is on your mind?"
)
GREETING_ZH = (
    "你好！我是内嵌的离线模型 ELIZA，只会用简单的句式陪你聊天；"
    "设置 OPENAI_API_KEY 就能接入真正的大模型。今天想聊些什么？"
)
GREETING_EN = (
    "Hello! I am ELIZA, the embedded offline model: I can only turn your words around, and a real model is one "
    "OPENAI_API_KEY away. What would you like to talk about?"
)
NO_WORDS = (
    "I can only read words, and there are none here. What would you like to say?（我只能读文字，请写点什么给我吧。）"
)

# Tried in order, at the start of what is said; `%1` is what the first group matched, seen from the other side.
PAIRS_EN: Pairs = [
    (
        r".*\b(introduce yourself|about yourself|who are you|what are you|your name|(what|which) model|"
        r"what can you do|are you (an? )?(ai|bot|robot|gpt|chatgpt|human|real))\b",
        [INTRODUCTION_EN],
    ),
    (r"(hello|hi|hey|greetings|good (morning|afternoon|evening))\b[^a-z]*$", [GREETING_EN]),
    (r".*\b(thanks|thank you|thx)\b", ["You are welcome. What else is on your mind?", "My pleasure. Do go on."]),
    (r"(goodbye|good-bye|bye|see you)\b", ["Goodbye! It was good to talk with you.", "Goodbye. Come back any time."]),
]
PAIRS_ZH: Pairs = [
    (
        r".*(介绍.{0,6}自己|自我介绍|介绍一下你|你是谁|您是谁|你是什么|您是什么|你叫什么|你的名字|你能做什么|你会什么|"
        r"你可以做什么|什么模型|哪个模型|你是(人|机器|真人|ai|chatgpt|gpt))",
        [INTRODUCTION_ZH],
    ),
    (r"(你好|您好|嗨|哈喽|哈啰|喂|早安|(早上|上午|中午|下午|晚上|大家)好)[^\w]*[呀啊吗]?[^\w]*$", [GREETING_ZH]),
    (r".*(谢谢|多谢|感谢)", ["不客气。还有什么想聊的吗？", "不用谢，能听你说话我也很高兴。接着说吧。"]),
    (r".*(再见|拜拜|下次聊|回头见|晚安)", ["再见！和你聊天很愉快。", "再见，随时欢迎你回来。"]),
    (r".*(对不起|抱歉|不好意思)", ["没关系，不需要道歉。", "道歉的时候，你心里是什么感受？"]),
    (r".*我(?:很|真的)?想要(.+)", ["得到%1，对你来说意味着什么？", "你为什么想要%1？", "如果有了%1，你会怎么做？"]),
    (r".*我(?:很|真的)?想(.+)", ["你为什么想%1？", "想%1的时候，你是什么心情？", "是什么让你现在想%1？"]),
    (r".*我(?:觉得|认为|感觉)(.+)", ["你为什么觉得%1？", "你常常觉得%1吗？", "你真的这样认为吗？再说说看。"]),
    (r".*我(?:希望|盼望)(.+)", ["如果真的%1，会有什么不同？", "你为什么希望%1？"]),
    (r".*我(?:需要)(.+)", ["你为什么需要%1？", "有了%1，真的会好起来吗？"]),
    (r".*我(?:喜欢|爱)(.+)", ["%1的什么地方让你喜欢？", "你是从什么时候开始喜欢%1的？"]),
    (r".*我(?:讨厌|不喜欢|恨)(.+)", ["%1让你想起了什么？", "是什么让你不喜欢%1？"]),
    (r".*我(?:害怕|怕|担心)(.+)", ["%1最让你担心的是什么？", "如果不再担心%1，你会做些什么？"]),
    (r".*我(?:不能|没法|做不到|不会)(.+)", ["你怎么知道自己不能%1？", "要怎样你才能%1？"]),
    (r".*我(?:是)(.+)", ["你是%1，这让你有什么感受？", "作为%1，你最在意的是什么？"]),
    (r".*我(?:很|好|非常|太|有点)(.+)", ["你%1多久了？", "是什么让你这么%1？", "%1的时候，你通常会做什么？"]),
    (r".*我的(.+)", ["多跟我说说你的%1。", "说到你的%1，你最先想到的是什么？"]),
    (r".*(妈妈|母亲|爸爸|父亲|家人|家里)", ["多说说你的家人吧。", "你和家人的关系怎么样？"]),
    (r".*(朋友|同学|同事)", ["和他们在一起，你感觉怎么样？", "说到朋友，你最先想到谁？"]),
    (r".*(工作|上班|老板|学习|考试)", ["这件事现在给了你多大压力？", "你希望它变成什么样？"]),
    (r".*(梦)", ["这个梦让你想到了什么？", "你常做这样的梦吗？"]),
    (r"(?:因为)(.+)", ["这是真正的原因吗？", "除了%1，还会有别的原因吗？"]),
    (r".*(为什么|为何|怎么会)", ["你自己觉得是为什么呢？", "这个问题的答案，对你有什么帮助？"]),
    (r".*(你能|你可以|能不能|可不可以|帮我)", ["我只是离线模型 ELIZA，恐怕帮不上忙；不过你可以先说说你的想法。"]),
    (r".*(怎么|如何|怎样|什么|哪|谁|多少|几)", ["这个我答不上来，我没有知识。你自己怎么看？", "你为什么想知道这个？"]),
    (r"(?:是的|对|嗯|没错|好的|好)[^\w]*$", ["你看起来很确定，能再多说一点吗？", "嗯，请继续。"]),
    (r"(?:不|不是|没有|不对)[^\w]*$", ["为什么不呢？", "你说“不”的时候，在想什么？"]),
    (r".*你(.+)", ["我们还是多聊聊你吧。", "你为什么说我%1？"]),
    (r".*[?？]", ["你为什么这样问？", "你自己觉得答案会是什么？"]),
    (r"", ["请继续说，我在听。", "能再说得具体一点吗？", "这让你有什么感受？", "我明白了。然后呢？"]),
]  # fmt: skip


@dataclass(frozen=True)
class Script:
    """Patterns with their answers, and how words look from the other side (I ↔ you)."""

    pairs: list[tuple[re.Pattern[str], Sequence[str]]]
    turn_around: Callable[[str], str]

    def answer(self, said: str, choice: random.Random) -> str:
        """Return an answer to `said` by the first pattern that fits. The last pattern must fit everything."""
        for pattern, answers in self.pairs:
            match = pattern.match(said)
            if match:
                return self._fill(choice.choice(answers), match)
        raise AssertionError("the script has no answer for everything")

    def _fill(self, answer: str, match: re.Match[str]) -> str:
        def group(placeholder: re.Match[str]) -> str:
            return self.turn_around((match[int(placeholder[1])] or "").strip(" \t.,!?;:。，！？；：…~"))

        filled = re.sub(r"%(\d)", group, answer)
        return re.sub(r"\?\.|\?\?", "?", filled)


def _compile(pairs: Pairs) -> list[tuple[re.Pattern[str], Sequence[str]]]:
    return [(re.compile(pattern, re.IGNORECASE | re.DOTALL), answers) for pattern, answers in pairs]


@lru_cache(maxsize=1)
def _english() -> Script:
    # Imported at the first English message, in a thread: it brings all of NLTK, and takes a second. Its tables are
    # used and its `Chat` is not: that one fails on a message with a percent sign.
    from nltk.chat.eliza import pairs, reflections

    words = re.compile(r"\b({})\b".format("|".join(sorted(map(re.escape, reflections), key=len, reverse=True))))
    return Script(
        [*_compile(PAIRS_EN), *_compile(pairs)],
        lambda text: words.sub(lambda match: reflections[match[1]], text.lower()),
    )


@lru_cache(maxsize=1)
def _chinese() -> Script:
    sides = str.maketrans({"我": "你", "你": "我", "您": "我"})

    def turn_around(text: str) -> str:
        clause = re.split(r"[，。！？；,!?;\n]", text, maxsplit=1)[0]
        return clause.rstrip("呢吗啊呀吧").translate(sides)

    return Script(_compile(PAIRS_ZH), turn_around)


def answer(said: str, *, turn: int = 0, seed: int | None = None) -> str:
    """Return what ELIZA says to `said`, in the language of it. May import NLTK: not for the event loop.

    With a `seed` the same words at the same `turn` of a conversation get the same answer.
    """
    said = said.strip()[:MAX_CHARACTERS]
    if not said:
        return NO_WORDS
    choice = random.Random()  # noqa: S311 - small talk
    if seed is not None:
        choice.seed(zlib.crc32(f"{seed}:{turn}:{said}".encode("utf-8", "replace")))
    script = _chinese() if _CJK.search(said) else _english()
    return script.answer(said, choice)
