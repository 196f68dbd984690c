"""Deterministic text in several languages and scripts, made of words chosen for the tests."""

# ruff: noqa: RUF001 (letters that look like others are meant)
from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Language:
    """Word lists of a language. A sentence has one entry of each list in order; bars separate entries.

    code: language code for the splitter. ends: sentence endings. space: separator of words.
    """

    code: str
    lists: tuple[str, ...]
    ends: tuple[str, ...]
    space: str = ""

    def documents(self, count: int, *, seed: int = 0) -> list[str]:
        """Make documents of 3 to 14 sentences, one per line."""
        rng = random.Random(seed)
        return ["\n".join(self.sentence(rng) for _ in range(rng.randint(3, 14))) for _ in range(count)]

    def sentence(self, rng: random.Random) -> str:
        """One clause or two."""
        words = [rng.choice(words.split("|")) for _ in range(rng.randint(1, 2)) for words in self.lists]
        return self.space.join(words) + rng.choice(self.ends)


LANGUAGES = {
    "chinese": Language(
        "zh",
        (
            "昨天|今天|明天|早上|晚上|去年|夏天|有时候|从前|后来|下午|周末",
            "老师|学生|我们|他们|医生|农民|孩子|邻居|司机|作家|朋友|父亲",
            "在图书馆|在山上|在河边|在城里|在家里|在学校|在火车上|在花园里|在市场|在海边|在路上|在办公室",
            "读了|写了|看见了|买了|忘记了|找到了|修理了|画了|讨论了|收到了|打开了|带来了",
            "一本书|一封信|三只鸟|很多苹果|新的自行车|旧地图|一幅画|这个问题|白色的马|两张票|一棵树|热茶",
        ),
        ("。", "。", "！", "？"),
    ),
    "japanese": Language(
        "ja",
        (
            "昨日|今日は|明日|朝|夜|去年|夏に|ときどき|昔|午後|週末に|最近",
            "先生が|学生が|私たちは|彼らは|医者が|農家の人が|子どもが|隣の人が|作家が|友だちが|父は|姉は",
            "図書館で|山の上で|川のそばで|町で|家で|学校で|電車の中で|庭で|市場で|海で|道で|駅前で",
            "本を|手紙を|三羽の鳥を|りんごを|自転車を|地図を|絵を|その問題を|白い馬を|切符を|木を|コーヒーを",
            "読んだ|書いた|見つけた|買った|忘れた|直した|描いた|話し合った|受け取った|開けた|持ってきた|撮った",
        ),
        ("。", "。", "！", "？"),
    ),
    "thai": Language(
        "th",
        (
            "เมื่อวานนี้|วันนี้|พรุ่งนี้|ตอนเช้า|ตอนเย็น|ปีที่แล้ว|ฤดูร้อน|บางครั้ง|นานมาแล้ว|ต่อมา|ตอนบ่าย|สุดสัปดาห์",
            "ครู|นักเรียน|พวกเรา|พวกเขา|หมอ|ชาวนา|เด็กๆ|เพื่อนบ้าน|คนขับรถ|นักเขียน|เพื่อน|พ่อ",
            "อ่าน|เขียน|เห็น|ซื้อ|ลืม|พบ|ซ่อม|วาด|พูดถึง|ได้รับ|เปิด|นำมา",
            "หนังสือ|จดหมาย|นกสามตัว|แอปเปิ้ล|จักรยานใหม่|แผนที่เก่า|ภาพวาด|ปัญหานี้|ม้าสีขาว|ตั๋วสองใบ|ต้นไม้|ชาร้อน",
            "ที่ห้องสมุด|บนภูเขา|ริมแม่น้ำ|ในเมือง|ที่บ้าน|ที่โรงเรียน|บนรถไฟ|ในสวน|ที่ตลาด|ริมทะเล|บนถนน|ในสำนักงาน",
        ),
        ("",),
    ),
    "arabic": Language(
        "ar",
        (
            "قرأ|كتب|رأى|اشترى|نسي|وجد|أصلح|رسم|ناقش|استلم|فتح|أحضر",
            "المعلم|الطالب|الطبيب|الفلاح|الولد|الجار|السائق|الكاتب|الصديق|الأب|المهندس|التاجر",
            "كتابا|رسالة|طائرا|تفاحا|دراجة|خريطة|لوحة|سؤالا|حصانا|تذكرة|شجرة|شايا",
            "في المكتبة|على الجبل|قرب النهر|في المدينة|في البيت|في المدرسة|في القطار|في الحديقة|في السوق",
            "أمس|اليوم|صباحا|مساء|قديما|أحيانا|لاحقا|ظهرا|كثيرا|سريعا|وحده|معهم",
        ),
        (".", ".", "!", "؟"),
        " ",
    ),
    "german": Language(
        "de",
        (
            "Gestern|Heute|Morgens|Abends|Vorgestern|Manchmal|Früher|Später|Nachmittags|Sonntags|Neulich|Oft",
            "las|schrieb|sah|kaufte|vergaß|fand|zeichnete|besprach|öffnete|brachte|verschenkte|suchte",
            "die Lehrerin|der Schüler|mein Großvater|die Ärztin|der Straßenbahnfahrer|das Mädchen|unser Nachbar",
            "ein Wörterbuch|Liebesbriefe|drei Vögel|Äpfel|Rückfahrkarten|Gemälde|Fahrradschlüssel|Kräutertee",
            "am Flussufer|im Stadtzentrum|auf dem Bauernhof|in der Universitätsbibliothek|zuhause|im Nachtzug",
        ),
        (".", ".", "!", "?"),
        " ",
    ),
    "continuous latin": Language(  # without spaces, as in inscriptions
        "la",
        (
            "heri|hodie|cras|mane|vespere|olim|aestate|interdum|postea|saepe|nuper|diu",
            "magister|discipulus|agricola|medicus|puer|vicinus|nauta|scriptor|amicus|pater|mercator|regina",
            "inbibliotheca|inmonte|adflumen|inurbe|domi|inludo|invia|inhorto|inforo|admare|ruri|incuria",
            "librum|epistulam|avem|malum|currum|tabulam|picturam|quaestionem|equum|tesseram|arborem|vinum",
            "legit|scripsit|vidit|emit|invenit|pinxit|accepit|aperuit|tulit|quaesivit|dedit|laudavit",
        ),
        ("",),
    ),
}
