//! Words that announce a code or a link, in the languages of those who send them.
//!
//! One automaton looks for all of them in one pass (ASCII letters without case; of other alphabets both cases
//! are given where the word begins a sentence). A message without any of them costs that pass and no more.

use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, AhoCorasickBuilder, AhoCorasickKind, MatchKind};

/// Cues looked at; a text made of them is no sign-up mail.
const MAX_CUES: usize = 300;

/// What is said of codes that sign somebody in, and of nothing else.
const STRONG: [&str; 97] = [
    "verification code",
    "verification pin",
    "verification number",
    "security code",
    "confirmation code",
    "authentication code",
    "authorization code",
    "authorisation code",
    "login code",
    "log-in code",
    "log in code",
    "sign-in code",
    "sign in code",
    "signin code",
    "sign-up code",
    "signup code",
    "access code",
    "one-time code",
    "one time code",
    "one-time password",
    "one time password",
    "one-time pin",
    "one time pin",
    "passcode",
    "otp",
    "2fa code",
    "two-factor code",
    "activation code",
    "temporary code",
    "temporary password",
    "single-use code",
    "verify code",
    "device code",
    "验证码",
    "驗證碼",
    "校验码",
    "动态码",
    "动态密码",
    "確認碼",
    "认证码",
    "激活码",
    "安全码",
    "認証コード",
    "確認コード",
    "認証番号",
    "確認番号",
    "ワンタイムパスワード",
    "パスコード",
    "セキュリティコード",
    "セキュリティ コード",
    "検証コード",
    "ログインコード",
    "暗証番号",
    "인증번호",
    "인증 번호",
    "인증코드",
    "인증 코드",
    "확인 코드",
    "확인코드",
    "보안 코드",
    "보안코드",
    "일회용 비밀번호",
    "código de verificación",
    "código de verificação",
    "código de seguridad",
    "código de confirmación",
    "código de acceso",
    "código de autorización",
    "code de vérification",
    "code de sécurité",
    "code de connexion",
    "code à usage unique",
    "mot de passe à usage unique",
    "codice di verifica",
    "codice di sicurezza",
    "bestätigungscode",
    "verifizierungscode",
    "sicherheitscode",
    "anmeldecode",
    "einmalcode",
    "einmalpasswort",
    "verificatiecode",
    "sms-code",
    "beveiligingscode",
    "inlogcode",
    "код подтверждения",
    "Код подтверждения",
    "код проверки",
    "код доступа",
    "код безопасности",
    "одноразовый пароль",
    "kod weryfikacyjny",
    "doğrulama kodu",
    "verifieringskod",
    "engangskode",
    "mã xác",
    "رمز التحقق",
];

/// What is also said of other things.
const WEAK: [&str; 31] = [
    "code",
    "codes",
    "pin",
    "tan",
    "token",
    "password",
    "passwort",
    "kennwort",
    "kod",
    "kode",
    "koden",
    "koodi",
    "kód",
    "kodu",
    "cod",
    "código",
    "codigo",
    "codice",
    "код",
    "Код",
    "пароль",
    "コード",
    "パスワード",
    "코드",
    "κωδικός",
    "Κωδικός",
    "קוד",
    "رمز",
    "कोड",
    "รหัส",
    "密码",
];

/// Words before `code` that make it another thing.
const OTHER_CODES: [&str; 44] = [
    "promo",
    "promotion",
    "promotional",
    "coupon",
    "discount",
    "voucher",
    "gift",
    "zip",
    "postal",
    "area",
    "country",
    "source",
    "error",
    "status",
    "exit",
    "dress",
    "qr",
    "bar",
    "product",
    "booking",
    "tax",
    "sort",
    "swift",
    "offer",
    "referral",
    "response",
    "machine",
    "open",
    "the",
    "morse",
    "building",
    "civil",
    "criminal",
    "penal",
    "sample",
    "example",
    "your",
    "python",
    "java",
    "html",
    "sql",
    "assembly",
    "legacy",
    "binary",
];

/// Words that end in `code` and are other things.
const OTHER_WORDS: [&str; 22] = [
    "barcode",
    "zipcode",
    "postcode",
    "unicode",
    "geocode",
    "promocode",
    "qrcode",
    "decode",
    "encode",
    "opcode",
    "vscode",
    "leetcode",
    "transcode",
    "bytecode",
    "pseudocode",
    "shellcode",
    "rabattcode",
    "gutscheincode",
    "kortingscode",
    "episode",
    "barkod",
    "urlencode",
];

/// What a link is for, in its address.
const LINK_PATHS: [&str; 20] = [
    "verify",
    "verification",
    "confirm",
    "activate",
    "activation",
    "validate",
    "reset",
    "magic",
    "signin",
    "sign-in",
    "sign_in",
    "login",
    "log-in",
    "log_in",
    "auth",
    "otp",
    "passwordless",
    "recover",
    "set-password",
    "email-change",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cue {
    pub start: usize,
    pub end: usize,
    pub strong: bool,
}

/// What one pass over a text found.
#[derive(Debug, Default)]
pub(super) struct Scan {
    pub cues: Vec<Cue>,
    /// A link that finishes a sign-up may be there.
    pub link: bool,
}

/// A table for every state: four times as fast as what the crate chooses for so many words, in half a MiB.
static WORDS: LazyLock<Option<AhoCorasick>> = LazyLock::new(|| {
    let words = STRONG.iter().chain(&WEAK).chain(&LINK_PATHS).chain(&LINK_WORDS);
    AhoCorasickBuilder::new()
        .ascii_case_insensitive(true)
        .match_kind(MatchKind::LeftmostLongest)
        .kind(Some(AhoCorasickKind::DFA))
        .build(words)
        .ok()
});

/// The cues of a text, in their order.
pub(super) fn scan(text: &str) -> Scan {
    let Some(automaton) = WORDS.as_ref() else { return Scan::default() };
    let mut scan = Scan::default();
    for one in automaton.find_iter(text) {
        scan.link = true;
        let word = one.pattern().as_usize();
        if word >= STRONG.len() + WEAK.len() {
            continue;
        }
        let cue = Cue { start: one.start(), end: one.end(), strong: word < STRONG.len() };
        if is_word(text, &cue) {
            scan.cues.push(cue);
        }
        if scan.cues.len() >= MAX_CUES {
            break;
        }
    }
    scan
}

/// A cue in letters of an alphabet is a word; Dutch and German write what is before it as one.
fn is_word(text: &str, cue: &Cue) -> bool {
    let (before, word, after) =
        (text.get(..cue.start), text.get(cue.start..cue.end).unwrap_or_default(), text.get(cue.end..));
    let (Some(before), Some(after)) = (before, after) else { return false };
    if !word.is_ascii() && !word.chars().next().is_some_and(|c| c.is_ascii_alphabetic()) {
        return true;
    }
    // A digit may follow directly, as in `code9384`.
    if after.chars().next().is_some_and(char::is_alphabetic) {
        return false;
    }
    let glued: String =
        before.chars().rev().take_while(|c| c.is_alphanumeric() || *c == '-').take(24).collect();
    let glued: String = glued.chars().rev().collect::<String>().to_lowercase();
    if !glued.is_empty() {
        let compound = word.len() >= 3
            && ["code", "codes", "kod", "kode", "koodi"].contains(&word.to_ascii_lowercase().as_str());
        let whole = format!("{glued}{}", word.to_ascii_lowercase());
        return compound
            && glued.chars().count() >= 3
            && !OTHER_WORDS.iter().any(|other| whole.ends_with(other));
    }
    if cue.strong || !word.to_ascii_lowercase().starts_with("code") {
        return true;
    }
    let previous = before.trim_end().rsplit(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    let previous = previous.to_lowercase();
    previous == "your" || previous == "the" || !OTHER_CODES.contains(&previous.as_str())
}

/// Whether an address names what it is for.
pub(super) fn names_link(path: &str) -> bool {
    LINK_PATHS.iter().any(|name| path.contains(name))
}

/// Words around a link that say what it is for, in lower case.
pub(super) const LINK_WORDS: [&str; 67] = [
    "verify",
    "verification",
    "confirm",
    "activate",
    "validate your",
    "reset your password",
    "reset password",
    "set your password",
    "set a new password",
    "choose a new password",
    "change your password",
    "magic link",
    "sign in link",
    "sign-in link",
    "login link",
    "log in link",
    "link to sign in",
    "link to log in",
    "to sign in",
    "to log in",
    "log in to",
    "sign in to",
    "sign in",
    "log in",
    "complete your registration",
    "finish signing up",
    "complete your sign",
    "complete signup",
    "one-time link",
    "bestätigen",
    "bestätige",
    "verifizieren",
    "aktivieren",
    "passwort zurücksetzen",
    "anmelden",
    "confirmer",
    "confirmez",
    "vérifier",
    "vérifiez",
    "activer",
    "activez",
    "réinitialiser",
    "connecter",
    "confirmar",
    "confirma",
    "verificar",
    "verifica",
    "activar",
    "restablecer",
    "ativar",
    "redefinir",
    "confermare",
    "conferma",
    "attiva",
    "reimposta",
    "bevestig",
    "verifieer",
    "activeer",
    "подтверд",
    "активир",
    "сброс",
    "验证",
    "確認",
    "认证",
    "認証",
    "인증",
    "확인",
];

/// Links that stand in every mail.
pub(super) const OTHER_LINKS: [&str; 14] = [
    "unsubscribe",
    "optout",
    "opt-out",
    "opt_out",
    "preferences",
    "privacy",
    "terms",
    "list-manage",
    "abmelden",
    "desinscri",
    "viewinbrowser",
    "view-in-browser",
    "/help",
    "/legal",
];

#[cfg(test)]
mod tests {
    use super::scan;

    #[test]
    fn cues_are_words() {
        let words = |text: &str| {
            scan(text).cues.iter().map(|cue| text[cue.start..cue.end].to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(
            words("Your verification code, 您的验证码, Verificatiecode"),
            ["verification code", "验证码", "Verificatiecode"]
        );
        assert_eq!(
            words("Uw inlogcode; der Zugangscode; PIN: 1; code9384"),
            ["inlogcode", "code", "PIN", "code"]
        );
        let none =
            "encoded in Unicode, the zip code, a promo code, pinned, bar codes, decode, opinion, Spain";
        assert_eq!(words(none), Vec::<String>::new());
    }
}
